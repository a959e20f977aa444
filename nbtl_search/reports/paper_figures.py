"""Figures in the paper's manner: rates by new layers, low layers, L2-SP blocks, best and default.

Plested, Shen and Gedeon (2021, arXiv 2107.08585), tables 2-6. Accuracies are validation top-1; of
trials that are not complete, as far as they got, and faint. Text of users is escaped.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import plotly.graph_objects as go

from nbtl_search import escaping
from nbtl_search.ledger.recommendation import Recommendation
from nbtl_search.ledger.records import TrialRecord, default_of, ranked
from nbtl_search.reports import traces
from nbtl_search.reports.traces import (
    BLUE,
    FAINT,
    GREEN,
    NEW_LAYERS,
    ORANGE,
    TOP1,
)
from nbtl_search.spec.verdict import Entry, Verdict

_BINS_A_DECADE: Final = 3
_SCALE: Final = "Viridis"


def rate_by_new_layers(trials: Sequence[TrialRecord]) -> go.Figure:
    """Draw accuracy over the learning rate, a colour per number of reinitialised layers.

    The lines join the best trials of each third of a decade of the rate.
    """
    figure = traces.empty("Learning rate, by number of new layers", x="learning rate", y=TOP1)
    _rate_axis(figure)
    shown = _with_value(trials)
    for n_new in sorted({min(trial.dials.reinit_layers, len(NEW_LAYERS)) for trial in shown}):
        group = [t for t in shown if min(t.dials.reinit_layers, len(NEW_LAYERS)) == n_new]
        color, name = NEW_LAYERS[n_new - 1], _n_new(n_new)
        cloud = traces.cloud(group, color=color, symbols=["circle"] * len(group))
        tops = _tops(group)
        line = go.Scatter(
            x=[traces.significant(trial.dials.lr_high) for trial in tops],
            y=[traces.value(trial) for trial in tops],
            mode="lines",
            name=name,
            line={"color": color, "width": 1.5},
            hoverinfo="skip",
            legendgroup=name,
            showlegend=False,
        )
        key = traces.key(name, "circle", color=color).update(legendgroup=name)
        figure.add_traces([cloud.update(legendgroup=name), line, key])
    return figure


def low_layers(trials: Sequence[TrialRecord], *, best: TrialRecord | None) -> go.Figure:
    """Draw accuracy over the number of blocks, from the input, that learn at the low rate."""
    figure = traces.empty("Blocks at the low rate", x="blocks at the low rate", y=TOP1)
    shown = _with_value(trials)
    none = [trial for trial in shown if trial.dials.n_low == 0]
    some = [trial for trial in shown if trial.dials.n_low > 0]
    ratios = [trial.dials.lr_low_ratio for trial in some]
    one_rate = _dots(none, "n_low", name="one rate", color=FAINT)
    two_rates = _dots(some, "n_low", name="two rates", color=BLUE)
    two_rates.update(marker=_coloured(some, ratios, title="low rate / high rate"))
    figure.add_traces([one_rate, two_rates, *_keys((none, some), ("one rate", "two rates"))])
    figure.add_traces([*_rings(shown, "n_low", best)])
    return traces.without_empty(figure)


def l2sp_blocks(trials: Sequence[TrialRecord], *, best: TrialRecord | None) -> go.Figure:
    """Draw accuracy over the number of blocks pulled to their old weights (L2-SP), not to zero.

    Colour is the strength of the pull: alpha, or where no block has L2-SP, beta.
    """
    figure = traces.empty("L2-SP against L2", x="blocks with L2-SP (0: plain L2)", y=TOP1)
    shown = _with_value(trials)
    plain = [trial for trial in shown if trial.dials.n_l2sp == 0]
    pulled = [trial for trial in shown if trial.dials.n_l2sp > 0]
    strengths = [trial.dials.alpha or trial.dials.beta for trial in (*plain, *pulled)]
    span = [value for value in strengths if value > 0]
    for group, name, symbol in ((plain, "plain L2", "square"), (pulled, "L2-SP", "circle")):
        values = [trial.dials.alpha if symbol == "circle" else trial.dials.beta for trial in group]
        dots = _dots(group, "n_l2sp", name=name, color=BLUE)
        marker = _coloured(group, values, title="alpha (beta at 0)", span=span)
        has_scale = symbol == "circle" or not pulled  # one of the two, or they overlap
        figure.add_trace(dots.update(marker=marker | {"symbol": symbol, "showscale": has_scale}))
    figure.add_traces([*_keys((plain, pulled), ("plain L2", "L2-SP"), ("square", "circle"))])
    figure.add_traces([*_rings(shown, "n_l2sp", best)])
    return traces.without_empty(figure)


def optimal_against_default(found: Recommendation, verdict: Verdict | None) -> go.Figure:
    """Draw the winner beside the default: test top-1 with its spread, once there is a verdict.

    Before, what the two are worth on the validation images, with 95 % intervals.
    """
    if verdict is not None and any(entry.single.mean is not None for entry in verdict.entries):
        # Without the recipes whose weights the winner averages: they are in the table.
        return _bars(tuple(dict.fromkeys((verdict.entries[0], verdict.entries[-1]))))
    figure = traces.empty("Best found against default: means over seeds", x="", y=TOP1)
    pair = [("default", found.default, ORANGE), ("best found", found.best, GREEN)]
    for name, trial, color in pair:
        value = found.value_of(trial)
        if trial is None or value is None:
            continue
        dot = traces.dots([trial], name=name, color=color, symbol="circle")
        spread = {
            "type": "data",
            "array": [value.high - value.mean],
            "arrayminus": [value.mean - value.low],
        }
        dot.update(x=[name], y=[value.mean], error_y=spread, marker={"size": 14, "color": color})
        figure.add_trace(dot)
    return figure.update_layout(showlegend=False)


def _bars(entries: Sequence[Entry]) -> go.Figure:
    y = "test top-1 / % (axis cut)"  # differences of a point must be seen
    figure = traces.empty("Optimal against default, test images", x="", y=y)
    measures: list[tuple[str, list[tuple[float | None, float | None]], str]] = [
        ("single crop", [(entry.single.mean, entry.single.std) for entry in entries], BLUE),
        ("ten crops", [(entry.ten_crop.mean, entry.ten_crop.std) for entry in entries], "#8fb8d8"),
        ("ensemble, ten crops", [(entry.ensemble_top1, None) for entry in entries], GREEN),
    ]
    x = [escaping.plotly(entry.name) for entry in entries]
    for name, values, color in measures:
        means = [None if mean is None else round(mean, 2) for mean, _ in values]
        if any(mean is not None for mean in means):
            bar = go.Bar(x=x, y=means, name=name, marker={"color": color})
            if any(std is not None for _, std in values):
                whiskers = [std or 0.0 for _, std in values]
                bar.update(error_y={"type": "data", "array": whiskers, "thickness": 1.2})
            figure.add_trace(bar.update(hovertemplate="%{x}<br>%{y:.2f} %"))
    known = [(m, s or 0.0) for _, values, _ in measures for m, s in values if m is not None]
    low = min(mean - spread for mean, spread in known)
    high = max(mean + spread for mean, spread in known)
    room = max(1.0, high - low)
    figure.update_yaxes(range=[max(0.0, low - room), min(100.0, high + 0.3 * room)])
    return figure.update_layout(barmode="group")


def _with_value(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    return [trial for trial in trials if traces.value(trial) is not None]


def _n_new(n_new: int) -> str:
    more = " or more" if n_new == len(NEW_LAYERS) else ""
    return f"{n_new}{more} new layer{'s' if n_new > 1 else ''}"


def _tops(group: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the best complete trial of each bin of the rate, by rate."""
    bins: dict[int, TrialRecord] = {}
    for trial in ranked(group):
        place = math.floor(math.log10(trial.dials.lr_high) * _BINS_A_DECADE)
        bins.setdefault(place, trial)
    return sorted(bins.values(), key=lambda trial: trial.dials.lr_high)


def _rate_axis(figure: go.Figure) -> None:
    rates = [traces.significant(rate) for rate in traces.RATES]
    figure.update_xaxes(type="log", tickvals=rates, ticktext=[f"{rate:g}" for rate in rates])


def _dots(trials: Sequence[TrialRecord], dial: str, *, name: str, color: str) -> go.Scatter:
    return go.Scatter(
        x=[getattr(trial.dials, dial) for trial in trials],
        y=[traces.value(trial) for trial in trials],
        text=[_hover(trial) for trial in trials],
        mode="markers",
        name=name,
        showlegend=False,
        marker={"color": color, "size": 9, "opacity": _opacity(trials)},
        hovertemplate="%{text}<br>%{y:.2f} %<extra></extra>",
    )


def _hover(trial: TrialRecord) -> str:
    dials = trial.dials
    parts = [f"trial {trial.number}", escaping.plotly(trial.name), f"rate {dials.lr_high:.2g}"]
    parts += [f"alpha {dials.alpha:.1g}" if dials.n_l2sp else "", f"beta {dials.beta:.1g}"]
    return ", ".join(part for part in parts if part)


def _opacity(trials: Sequence[TrialRecord]) -> list[float]:
    return [0.9 if trial.state == "complete" else 0.3 for trial in trials]


def _coloured(
    trials: Sequence[TrialRecord],
    values: Sequence[float],
    *,
    title: str,
    span: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return markers coloured by a positive value on a logarithmic scale."""
    known = [value for value in (span or values) if value > 0] or [1.0]
    low, high = math.log10(min(known)), math.log10(max(known))
    high = high if high > low else low + 1
    digits = (1,) if high - low > 2 else (1, 2, 5)
    powers = range(math.floor(low), math.ceil(high) + 1)
    places = [
        (math.log10(digit) + power, digit * 10.0**power) for power in powers for digit in digits
    ]
    ticks = [(place, f"{value:g}") for place, value in places if low <= place <= high]
    return {
        "color": [round(math.log10(value), 3) if value > 0 else low for value in values],
        "cmin": low,
        "cmax": high,
        "colorscale": _SCALE,
        "size": 9,
        "opacity": _opacity(trials),
        "colorbar": {
            "title": {"text": title, "side": "right", "font": {"size": 11}},
            "thickness": 10,
            "outlinewidth": 0,
            "tickvals": [place for place, _ in ticks],
            "ticktext": [text for _, text in ticks],
        },
    }


def _keys(
    groups: Sequence[Sequence[TrialRecord]],
    names: Sequence[str],
    symbols: Sequence[str] = ("circle", "circle"),
) -> Iterator[go.Scatter]:
    """Yield entries of the legend: the dots' own would show the first trial's faintness."""
    colors = (FAINT, "#3b8a8a") if symbols[0] == symbols[1] else ("#666666", "#666666")
    for group, name, symbol, color in zip(groups, names, symbols, colors, strict=True):
        if group:
            yield traces.key(name, symbol, color=color)


def _rings(
    shown: Sequence[TrialRecord], dial: str, best: TrialRecord | None
) -> Iterator[go.Scatter]:
    complete = [trial for trial in shown if trial.state == "complete"]
    pair = (("default", default_of(complete), ORANGE), ("best", best, GREEN))
    for name, trial, color in pair:
        if trial is not None:
            ring = traces.ring(trial, name, color)
            yield ring.update(x=[getattr(trial.dials, dial)])
