"""Traces and layout of our plotly figures. Accuracies are validation top-1."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import plotly.graph_objects as go

from nbtl_search import escaping
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.spec import Epoch

TOP1: Final = "validation top-1 / %"
BLUE: Final = "#1f77b4"
ORANGE: Final = "#e07b00"
GREEN: Final = "#2a9d3a"
NEW_LAYERS: Final = ("#440154", "#31688e", "#35b779", "#e0a000", "#d1495b")  # the last: or more
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
    return f"trial {trial.number} ({escaping.plotly(trial.name)})" if trial.name else _plain(trial)


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
