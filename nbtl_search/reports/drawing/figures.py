"""The look of our figures, and the traces they are made of.

Figures of a study, as pure functions from its rows. Accuracies are validation top-1.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nbtl_search.ledger.records import TrialRecord
from nbtl_search.reports.comparison import best_of, default_of
from nbtl_search.space import CONDITIONS
from nbtl_search.spec import Epoch

TOP1: Final = "validation top-1 / %"
BLUE: Final = "#1f77b4"
ORANGE: Final = "#e07b00"
GREEN: Final = "#2a9d3a"
FAINT: Final = "#bbbbbb"
RATES: Final = [
    digit * 10.0**power for power in range(-7, 2) for digit in (1, 2, 5)
]  # the ticks of an axis of learning rates: plotly's own are single digits between powers
AXIS: Final = {"gridcolor": "#eeeeee", "zeroline": False, "showline": True, "linecolor": "#999999"}
_LAYOUT: Final[dict[str, Any]] = {
    "template": "none",
    "font": {"family": "sans-serif", "size": 12, "color": "#333333"},
    "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "hovermode": "closest",
    "legend": {"orientation": "h", "x": 0, "y": -0.18, "yanchor": "top"},
}


def layout(title: str) -> dict[str, Any]:
    """Return a figure's layout with this title."""
    return _LAYOUT | {"title": {"text": title, "x": 0.02, "xanchor": "left", "font": {"size": 15}}}


def empty(title: str, *, x: str, y: str) -> go.Figure:
    """Return a figure without traces."""
    axes = {"xaxis": {"title": {"text": x}, **AXIS}, "yaxis": {"title": {"text": y}, **AXIS}}
    return go.Figure(layout=layout(title) | axes)


def without_empty(figure: go.Figure) -> go.Figure:
    """Drop traces without points: they would only stand in the legend."""
    figure.data = [trace for trace in figure.data if trace.x]
    return figure


def value(trial: TrialRecord) -> float | None:
    """Return a trial's accuracy: of an open or pruned one, as far as it got."""
    known = trial.value if trial.value is not None else trial.last_top1
    return None if known is None else round(known, 2)


def label(trial: TrialRecord) -> str:
    """Return a trial's number and name, escaped: plotly draws a part of HTML."""
    return (
        f"trial {trial.number} ({html.escape(trial.name, quote=False)})"
        if trial.name
        else _plain(trial)
    )


def _plain(trial: TrialRecord) -> str:
    return f"trial {trial.number}"


def significant(number: float) -> float:
    """Return a number rounded to three significant digits."""
    return float(f"{number:.3g}")


def dots(trials: Sequence[TrialRecord], *, name: str, color: str, symbol: str) -> go.Scatter:
    """Return accuracies over the trials' numbers."""
    return go.Scatter(
        x=[trial.number for trial in trials],
        y=[value(trial) for trial in trials],
        text=[label(trial) for trial in trials],
        mode="markers",
        name=name,
        marker={
            "color": color,
            "size": 7,
            "symbol": symbol,
            "line": {"width": 1.5, "color": color},
        },
        hovertemplate="%{text}<br>%{y:.2f} %<extra></extra>",
    )


def level(trials: Sequence[TrialRecord], height: float, *, name: str) -> go.Scatter:
    """Return a dashed horizontal line over all trials."""
    numbers = [trial.number for trial in trials]
    return go.Scatter(
        x=[min(numbers), max(numbers)],
        y=[round(height, 2)] * 2,
        mode="lines",
        name=name,
        line={"dash": "dash", "color": ORANGE, "width": 1.5},
    )


def cloud(trials: Sequence[TrialRecord], *, color: str, symbols: Sequence[str]) -> go.Scatter:
    """Return accuracies over the learning rate; trials that are not complete are faint.

    It is no entry of the legend, which would show the first trial's faintness: see `key`.
    """
    texts = [
        f"{label(trial)}<br>{trial.dials.n_l2sp} L2-SP blocks, {trial.n_epochs} epochs"
        for trial in trials
    ]
    opacity = [0.9 if trial.state == "complete" else 0.3 for trial in trials]
    return go.Scatter(
        x=[significant(trial.dials.lr_high) for trial in trials],
        y=[value(trial) for trial in trials],
        text=texts,
        mode="markers",
        showlegend=False,
        marker={"color": color, "size": 9, "symbol": list(symbols), "opacity": opacity},
        hovertemplate="%{text}<br>rate %{x:.2g}<br>%{y:.2f} %<extra></extra>",
    )


def key(name: str, symbol: str, *, color: str = "#666666") -> go.Scatter:
    """Return a trace that only explains a symbol or colour in the legend."""
    marker = {"color": color, "symbol": symbol, "size": 9}
    return go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker)


def ring(trial: TrialRecord, name: str, color: str) -> go.Scatter:
    """Return a ring around one trial of a `cloud`."""
    return go.Scatter(
        x=[significant(trial.dials.lr_high)],
        y=[value(trial)],
        mode="markers",
        name=name,
        marker={"symbol": "circle-open", "size": 17, "color": color, "line": {"width": 2.5}},
        hoverinfo="skip",
    )


def lines(
    trials: Sequence[TrialRecord],
    curves: Mapping[int, Sequence[Epoch]],
    *,
    name: str,
    color: str,
    width: float,
) -> go.Scatter:
    """Return the curves as one trace with gaps: a trace each would be mostly repetition."""
    points = list(_points(trials, curves))
    return go.Scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        mode="lines",
        name=name,
        line={"color": color, "width": width},
        connectgaps=False,
        hovertemplate="epoch %{x}: %{y} %",
    )


def panel(trials: Sequence[TrialRecord], dial: str, *, color: str) -> go.Scatter:
    """Return accuracies over one dial."""
    values = [getattr(trial.dials, dial) for trial in trials]
    return go.Scatter(
        x=[value if isinstance(value, str) else significant(value) for value in values],
        y=[value(trial) for trial in trials],
        text=[str(trial.number) for trial in trials],
        mode="markers",
        marker={"color": color, "size": 5, "opacity": 0.7},
        hovertemplate="trial %{text}: %{y} %<extra></extra>",
    )


def _points(
    trials: Sequence[TrialRecord], curves: Mapping[int, Sequence[Epoch]]
) -> Iterator[tuple[int | None, float | None]]:
    for trial in trials:
        points = [
            (epoch.epoch, round(epoch.val_top1, 2))
            for epoch in curves.get(trial.number, ())
            if epoch.val_top1 is not None
        ]
        if points:
            yield from points
            yield None, None


NEW_LAYERS: Final = ("#440154", "#31688e", "#35b779", "#e0a000", "#d1495b")  # the last: or more
_SYMBOLS: Final = {"no L2-SP": "circle", "L2-SP on some": "diamond", "L2-SP on all": "square"}
_DIALS: Final = {  # what an axis says, and whether it is logarithmic
    "reinit_layers": ("new layers", False),
    "lr_high": ("rate, high blocks", True),
    "lr_head_ratio": ("head rate / high", True),
    "n_low": ("blocks at low rate", False),
    "lr_low_ratio": ("low rate / high", True),
    "n_l2sp": ("L2-SP blocks", False),
    "alpha": ("L2-SP strength", True),
    "beta": ("L2 strength", True),
    "momentum": ("momentum", False),
    "frozen_layers": ("frozen blocks", False),
    "source_head": ("source classifier", False),
    "delta": ("DELTA", False),
    "delta_alpha": ("DELTA strength", True),
    "distill": ("distillation", False),
    "distill_temperature": ("its temperature", False),
    "dtnh": ("DTNH", False),
    "bss": ("spectral shrinkage", False),
    "stochnorm_p": ("stochastic norm p", False),
    "decay_updates": ("updates a decay", False),
    "decay_factor": ("factor of a decay", False),
}
_ROW_PX: Final = 230  # of panels, where they need more height than a figure has
_STRENGTHS: Final = ("alpha", "beta", "delta_alpha")


def history(trials: Sequence[TrialRecord]) -> go.Figure:
    """Draw each trial's accuracy in the order they started, and the best so far."""
    figure = empty("Search history", x="trial", y=TOP1)
    shown = [trial for trial in trials if value(trial) is not None]
    pruned = [trial for trial in shown if trial.state == "pruned"]
    complete = [trial for trial in shown if trial.state == "complete"]
    running = [trial for trial in shown if trial.finished_at is None]
    figure.add_traces(
        [
            dots(pruned, name="pruned", color=FAINT, symbol="x-thin-open"),
            dots(running, name="not ended", color=ORANGE, symbol="circle-open"),
            dots(complete, name="complete", color=BLUE, symbol="circle"),
            _best_so_far(complete, last=max((trial.number for trial in trials), default=0)),
        ]
    )
    default = default_of(complete)
    if default is not None and default.value is not None:
        name = f"default ({default.value:.2f} %)"
        figure.add_trace(level(trials, default.value, name=name))
    return without_empty(figure)


def learning_curves(
    trials: Sequence[TrialRecord], curves: Mapping[int, Sequence[Epoch]]
) -> go.Figure:
    """Draw every trial's accuracy over its epochs; the best and the default stand out."""
    figure = empty("Learning curves of all trials", x="epoch", y=TOP1)
    best, default = best_of(trials), default_of(trials)
    special = {trial.number for trial in (best, default) if trial is not None}
    others = [trial for trial in trials if trial.number not in special]
    pruned = [trial for trial in others if trial.state == "pruned"]
    rest = [trial for trial in others if trial.state != "pruned"]
    figure.add_traces(
        [
            lines(pruned, curves, name="pruned", color="#d5d5d5", width=1),
            lines(rest, curves, name="other trials", color="#a9c7e0", width=1),
        ]
    )
    if default is not None and default != best:
        figure.add_trace(lines([default], curves, name="default", color=ORANGE, width=2.5))
    if best is not None:
        name = f"best: {label(best)}"
        figure.add_trace(lines([best], curves, name=name, color=GREEN, width=2.5))
    return without_empty(figure)


def non_binary(trials: Sequence[TrialRecord], *, n_blocks: int) -> go.Figure:
    """Draw accuracy over the learning rate, by the number of new layers and of L2-SP blocks.

    Usual practice is one colour (one new layer) and the symbols for none or all: what lies
    between is what a binary choice never tries. Trials that are not complete are faint and count
    as far as they got.
    """
    figure = empty(
        "Not binary: rate, new layers, L2-SP", x="learning rate of the high blocks", y=TOP1
    )
    rates = [significant(rate) for rate in RATES]
    figure.update_xaxes(type="log", tickvals=rates, ticktext=[f"{rate:g}" for rate in rates])
    shown = [trial for trial in trials if value(trial) is not None]
    for n_new in sorted({_new_layers(trial) for trial in shown}):
        group = [trial for trial in shown if _new_layers(trial) == n_new]
        figure.add_trace(
            cloud(
                group,
                color=NEW_LAYERS[n_new - 1],
                symbols=[_SYMBOLS[_l2sp(trial, n_blocks)] for trial in group],
            )
        )
        name = _new_layers_name(n_new)
        figure.add_trace(key(name, "circle", color=NEW_LAYERS[n_new - 1]))
    if shown:
        figure.add_traces([key(name, f"{kind}-open") for name, kind in _SYMBOLS.items()])
    complete = [trial for trial in shown if trial.state == "complete"]
    for name, trial, color in (
        ("default", default_of(complete), ORANGE),
        ("best", best_of(complete), GREEN),
    ):
        if trial is not None:
            figure.add_trace(ring(trial, name, color))
    return figure


def dials(trials: Sequence[TrialRecord]) -> go.Figure:
    """Draw accuracy over each dial that differs between trials, one small panel each."""
    shown = [trial for trial in trials if value(trial) is not None]
    varied = [name for name in _DIALS if len({getattr(trial.dials, name) for trial in shown}) > 1]
    names = varied or ["lr_high"]
    n_columns = min(4, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=min(0.22, 0.44 / n_rows),
    )
    figure.update_layout(layout("Each dial alone (pruned trials faint)"), showlegend=False)
    if n_rows > 2:
        figure.update_layout(height=_ROW_PX * n_rows)
    figure.update_yaxes(**AXIS)
    figure.update_yaxes(title={"text": "top-1 / %"}, col=1)
    for index, name in enumerate(names):
        place = {"row": index // n_columns + 1, "col": index % n_columns + 1}
        active = [trial for trial in shown if _is_active(trial, name)]
        pruned = [trial for trial in active if trial.state == "pruned"]
        others = [trial for trial in active if trial.state != "pruned"]
        figure.add_trace(panel(pruned, name, color=FAINT), **place)
        figure.add_trace(panel(others, name, color=BLUE), **place)
        title, is_log = _DIALS[name]
        scale: dict[str, Any] = {"nticks": 5}
        if is_log:
            tick = 2 if name in _STRENGTHS else 1  # in powers of ten
            scale = {"type": "log", "dtick": tick, "exponentformat": "e"}
        elif name == "reinit_layers" and max(trial.dials.reinit_layers for trial in shown) <= 5:
            scale = {"dtick": 1}
        figure.update_xaxes(title={"text": title, "standoff": 5}, **scale, **AXIS, **place)
    return without_empty(figure)


def _best_so_far(complete: Sequence[TrialRecord], *, last: int) -> go.Scatter:
    best = list(accumulate((value(trial) or 0.0 for trial in complete), max))
    return go.Scatter(
        x=[trial.number for trial in complete] + [last] * bool(complete),
        y=best + best[-1:],
        mode="lines",
        name="best so far",
        line={"shape": "hv", "color": BLUE, "width": 1.5},
    )


def _is_active(trial: TrialRecord, dial: str) -> bool:
    """Tell whether a dial had any effect in this trial."""
    condition = CONDITIONS.get(dial)
    return condition is None or condition.holds(dict(trial.dials))


def _new_layers(trial: TrialRecord) -> int:
    return min(trial.dials.reinit_layers, len(NEW_LAYERS))


def _new_layers_name(n_new: int) -> str:
    if n_new == len(NEW_LAYERS):
        return f"{n_new} or more new layers"
    return f"{n_new} new layer{'s' if n_new > 1 else ''}"


def _l2sp(trial: TrialRecord, n_blocks: int) -> str:
    n_pretrained = n_blocks - (trial.dials.reinit_layers - 1)
    if trial.dials.n_l2sp == 0:
        return "no L2-SP"
    return "L2-SP on all" if trial.dials.n_l2sp >= n_pretrained else "L2-SP on some"
