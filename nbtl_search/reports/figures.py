"""Figures of a report: how each is drawn from a study's rows, and what there is to see in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nbtl_search.ledger.records import TrialRecord, default_of
from nbtl_search.reports import ablation, paper_figures, traces
from nbtl_search.reports.content import Content
from nbtl_search.reports.importance import NAMES, Importances
from nbtl_search.reports.traces import AXIS, BLUE, FAINT, GREEN, NEW_LAYERS, ORANGE, TOP1
from nbtl_search.space import CONDITIONS
from nbtl_search.spec import Epoch
from nbtl_search.spec.ablation import Ablation

_FAINT_POINTS: Final = 5000  # above, faint lines answer no pointer: each move would search them all
_SYMBOLS: Final = {"no L2-SP": "circle", "L2-SP on some": "diamond", "L2-SP on all": "square"}
_DIALS: Final = {  # what an axis says, and whether it is logarithmic
    "reinit_layers": ("new layers", False),
    "lr_high": ("rate, high blocks", True),
    "lr_head_ratio": ("head rate / high", True),
    "layer_decay": ("rate / block above", False),
    "n_low": ("blocks at low rate", False),
    "lr_low_ratio": ("low rate / high", True),
    "n_l2sp": ("L2-SP blocks", False),
    "alpha": ("L2-SP strength", True),
    "beta": ("L2 strength", True),
    "momentum": ("momentum", False),
    "frozen_layers": ("frozen blocks", False),
    "source_head": ("source classifier", False),
    "head_start": ("classifier's start", False),
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


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure; `name` is also its file's."""

    name: str
    title: str
    caption: str
    plot: go.Figure
    height_px: int = 380
    least_width_px: int = 0
    """Below, it scrolls in its box."""
    has_heading: bool = True
    """Whether the page says its title once more; not where its section has the same."""


def history(trials: Sequence[TrialRecord]) -> go.Figure:
    """Draw each trial's accuracy in the order they started, and the best so far."""
    figure = traces.empty("Search history", x="trial", y=TOP1)
    shown = [trial for trial in trials if traces.value(trial) is not None]
    pruned = [trial for trial in shown if trial.state == "pruned"]
    complete = [trial for trial in shown if trial.state == "complete"]
    paused = [trial for trial in shown if trial.state == "paused"]
    running = [trial for trial in shown if trial.state in {"running", "waiting"}]
    figure.add_traces(
        [
            traces.dots(pruned, name="pruned", color=FAINT, symbol="x-thin-open"),
            traces.dots(paused, name="paused", color=FAINT, symbol="circle-open"),
            traces.dots(running, name="not ended", color=ORANGE, symbol="circle-open"),
            traces.dots(complete, name="complete", color=BLUE, symbol="circle"),
            _best_so_far(complete, last=max((trial.number for trial in trials), default=0)),
        ]
    )
    default = default_of(complete)
    if default is not None and default.value is not None:
        name = f"default ({default.value:.2f} %)"
        figure.add_trace(traces.level(trials, default.value, name=name))
    return traces.without_empty(figure)


def learning_curves(
    trials: Sequence[TrialRecord],
    curves: Mapping[int, Sequence[Epoch]],
    *,
    best: TrialRecord | None,
) -> go.Figure:
    """Draw every trial's accuracy over its epochs; the best and the default stand out."""
    figure = traces.empty("Learning curves of all trials", x="epoch", y=TOP1)
    default = default_of(trials)
    special = {trial.number for trial in (best, default) if trial is not None}
    others = [trial for trial in trials if trial.number not in special]
    pruned = [trial for trial in others if trial.state == "pruned"]
    rest = [trial for trial in others if trial.state != "pruned"]
    figure.add_traces(
        [
            traces.lines(pruned, curves, name="pruned", color="#d5d5d5", width=1),
            traces.lines(rest, curves, name="other trials", color="#a9c7e0", width=1),
        ]
    )
    if default is not None and default != best:
        figure.add_trace(traces.lines([default], curves, name="default", color=ORANGE, width=2.5))
    if best is not None:
        name = f"best: {traces.label(best)}"
        figure.add_trace(traces.lines([best], curves, name=name, color=GREEN, width=2.5))
    return traces.without_empty(figure)


def non_binary(
    trials: Sequence[TrialRecord], *, n_blocks: int, best: TrialRecord | None
) -> go.Figure:
    """Draw accuracy over the learning rate, by the number of new layers and of L2-SP blocks.

    Usual practice is one colour (one new layer) and the symbols for none or all: what lies
    between is what a binary choice never tries. Trials that are not complete are faint and count
    as far as they got.
    """
    figure = traces.empty(
        "Not binary: rate, new layers, L2-SP", x="learning rate of the high blocks", y=TOP1
    )
    rates = [traces.significant(rate) for rate in traces.RATES]
    figure.update_xaxes(type="log", tickvals=rates, ticktext=[f"{rate:g}" for rate in rates])
    shown = [trial for trial in trials if traces.value(trial) is not None]
    for n_new in sorted({_new_layers(trial) for trial in shown}):
        group = [trial for trial in shown if _new_layers(trial) == n_new]
        figure.add_trace(
            traces.cloud(
                group,
                color=NEW_LAYERS[n_new - 1],
                symbols=[_SYMBOLS[_l2sp(trial, n_blocks)] for trial in group],
            )
        )
        name = _new_layers_name(n_new)
        figure.add_trace(traces.key(name, "circle", color=NEW_LAYERS[n_new - 1]))
    if shown:
        figure.add_traces([traces.key(name, f"{kind}-open") for name, kind in _SYMBOLS.items()])
    complete = [trial for trial in shown if trial.state == "complete"]
    for name, trial, color in (
        ("default", default_of(complete), ORANGE),
        ("best", best, GREEN),
    ):
        if trial is not None:
            figure.add_trace(traces.ring(trial, name, color))
    return figure


def dials(trials: Sequence[TrialRecord]) -> go.Figure:
    """Draw accuracy over each dial that differs between trials, one small panel each."""
    shown = [trial for trial in trials if traces.value(trial) is not None]
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
    figure.update_layout(traces.layout("Each dial alone (pruned trials faint)"), showlegend=False)
    if n_rows > 2:
        figure.update_layout(height=_ROW_PX * n_rows)
    figure.update_yaxes(**AXIS)
    figure.update_yaxes(title={"text": "top-1 / %"}, col=1)
    for index, name in enumerate(names):
        place = {"row": index // n_columns + 1, "col": index % n_columns + 1}
        active = [trial for trial in shown if _is_active(trial, name)]
        pruned = [trial for trial in active if trial.state == "pruned"]
        others = [trial for trial in active if trial.state != "pruned"]
        figure.add_trace(traces.panel(pruned, name, color=FAINT), **place)
        figure.add_trace(traces.panel(others, name, color=BLUE), **place)
        title, is_log = _DIALS[name]
        scale: dict[str, Any] = {"nticks": 5}
        if is_log:
            tick = 2 if name in _STRENGTHS else 1  # in powers of ten
            scale = {"type": "log", "dtick": tick, "exponentformat": "e"}
        elif name == "reinit_layers" and max(trial.dials.reinit_layers for trial in shown) <= 5:
            scale = {"dtick": 1}
        figure.update_xaxes(title={"text": title, "standoff": 5}, **scale, **AXIS, **place)
    return traces.without_empty(figure)


def _best_so_far(complete: Sequence[TrialRecord], *, last: int) -> go.Scatter:
    best = list(accumulate((traces.value(trial) or 0.0 for trial in complete), max))
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


def importance_bars(found: Importances) -> go.Figure:
    """Draw the shares as bars, the largest on top."""
    figure = traces.empty("Importance of the dials", x="share of the importance / %", y="")
    names = [NAMES.get(name, name) for name in found.shares]
    shares = [round(100 * share, 1) for share in found.shares.values()]
    bar = go.Bar(
        x=shares,
        y=names,
        orientation="h",
        marker={"color": BLUE},
        hovertemplate="%{y}: %{x} %<extra></extra>",
        name="share",
    )
    figure.add_trace(bar)
    figure.update_yaxes(autorange="reversed", automargin=True, **AXIS, ticksuffix=" ")
    return figure.update_layout(showlegend=False)


def of_ablation(found: Ablation) -> Figure:
    """Return the figure of an ablation."""
    return Figure(
        name="ablation",
        title="What each group is worth",
        caption="Points of validation top-1 that the recipe loses without a group of dials, with "
        "95 % intervals. Green is needed, orange does harm, grey is neither, or cannot be told.",
        plot=ablation.bars(found),
        height_px=110 + 30 * (len(found.groups) + 1),
        has_heading=False,
    )


def figures_of(content: Content) -> tuple[Figure, ...]:
    """Return every figure that has anything to show, in the order of the page."""
    return tuple(figure for figure in _all(content) if figure.plot.data)


def _all(content: Content) -> Iterator[Figure]:
    trials, curves = content.trials, content.curves
    yield Figure(
        name="history",
        title="Search history",
        caption="Each trial's validation accuracy in the order they started, and the best so far.",
        plot=history(trials),
    )
    yield Figure(
        name="curves",
        title="Learning curves",
        caption="Validation accuracy after each epoch; trials that were stopped early are grey.",
        plot=_light(learning_curves(trials, curves, best=content.best)),
        height_px=420,
        has_heading=False,
    )
    if content.importances.shares:
        yield Figure(
            name="importances",
            title="Importance of the dials",
            caption=content.importances.reading,
            plot=importance_bars(content.importances),
            height_px=110 + 30 * len(content.importances.shares),
        )
    if content.ablation is not None:
        yield of_ablation(content.ablation)
    panels = dials(trials).update_layout(showlegend=False)
    yield Figure(
        name="dials",
        title="Each dial alone",
        caption="Validation accuracy over each dial that was searched; stopped trials are grey.",
        plot=panels,
        height_px=panels.layout.height or 460,
        least_width_px=680,
    )
    yield from _of_paper(content)


def _of_paper(content: Content) -> Iterator[Figure]:
    trials = content.trials
    yield Figure(
        name="rate",
        title="Learning rate, by number of new layers",
        caption="A line joins the best complete trials of each third of a decade of the rate; "
        "trials that were stopped are faint.",
        plot=paper_figures.rate_by_new_layers(trials),
        height_px=420,
    )
    yield Figure(
        name="low-layers",
        title="Blocks at the low rate",
        caption="How many blocks, from the input, learn at the lower of two rates.",
        plot=paper_figures.low_layers(trials, best=content.best),
        height_px=420,
    )
    yield Figure(
        name="l2sp",
        title="L2-SP against L2",
        caption="How many blocks, from the input, are pulled to their pre-trained weights instead "
        "of to zero; the colour is the strength of the pull.",
        plot=paper_figures.l2sp_blocks(trials, best=content.best),
        height_px=420,
    )
    yield Figure(
        name="optimal",
        title="Optimal against default",
        caption="After final runs with whiskers of one standard deviation over the seeds; before, "
        "what the two recipes are worth by the search's runs, with 95 % intervals.",
        plot=paper_figures.optimal_against_default(content.recommendation, content.verdict),
        height_px=340,
    )


def _light(figure: go.Figure) -> go.Figure:
    for trace in figure.data:
        if len(trace.x) > _FAINT_POINTS:
            trace.update(hoverinfo="skip", hovertemplate=None)
            trace.line.width = 0.6
    return figure
