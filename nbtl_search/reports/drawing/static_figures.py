"""The figures of a report: which there are, what they are called, and what to see in them.

The figures of a report as files for a paper: SVG and PNG by matplotlib, and their points as CSV.

Every plate is drawn from the figure of the page, so both show the same points.
"""

import csv
import html
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import plotly.graph_objects as go

from nbtl_search.reports.content import Content
from nbtl_search.reports.drawing import figures, importance, paper_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAINT_POINTS = 5000  # above, faint lines answer no pointer: each move would search them all


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure; `name` is also its file's."""

    name: str
    title: str
    caption: str
    figure: go.Figure
    height_px: int = 380
    least_width_px: int = 0
    """Below, it scrolls in its box."""
    has_heading: bool = True
    """Whether the page says its title once more; not where its section has the same."""


def pictures(content: Content) -> tuple[Picture, ...]:
    """Return every figure that has anything to show, in the order of the page."""
    return tuple(picture for picture in _all(content) if picture.figure.data)


def _all(content: Content) -> Iterator[Picture]:
    trials, curves = content.trials, content.curves
    yield Picture(
        name="history",
        title="Search history",
        caption="Each trial's validation accuracy in the order they started, and the best so far.",
        figure=figures.history(trials),
    )
    yield Picture(
        name="curves",
        title="Learning curves",
        caption="Validation accuracy after each epoch; trials that were stopped early are grey.",
        figure=_light(figures.learning_curves(trials, curves)),
        height_px=420,
        has_heading=False,
    )
    if content.importances.shares:
        yield Picture(
            name="importances",
            title="Importance of the dials",
            caption=content.importances.reading,
            figure=importance.bars(content.importances),
            height_px=110 + 30 * len(content.importances.shares),
        )
    dials = figures.dials(trials).update_layout(showlegend=False)
    yield Picture(
        name="dials",
        title="Each dial alone",
        caption="Validation accuracy over each dial that was searched; stopped trials are grey.",
        figure=dials,
        height_px=dials.layout.height or 460,
        least_width_px=680,
    )
    yield from _of_paper(content)


def _of_paper(content: Content) -> Iterator[Picture]:
    trials = content.trials
    yield Picture(
        name="rate",
        title="Learning rate, by number of new layers",
        caption="A line joins the best complete trials of each third of a decade of the rate; "
        "trials that were stopped are faint.",
        figure=paper_figures.rate_by_new_layers(trials),
        height_px=420,
    )
    yield Picture(
        name="low-layers",
        title="Blocks at the low rate",
        caption="How many blocks, from the input, learn at the lower of two rates.",
        figure=paper_figures.low_layers(trials),
        height_px=420,
    )
    yield Picture(
        name="l2sp",
        title="L2-SP against L2",
        caption="How many blocks, from the input, are pulled to their pre-trained weights instead "
        "of to zero; the colour is the strength of the pull.",
        figure=paper_figures.l2sp_blocks(trials),
        height_px=420,
    )
    yield Picture(
        name="optimal",
        title="Optimal against default",
        caption="With whiskers of one standard deviation over the seeds where there are several "
        "runs; without, one run is all there is.",
        figure=paper_figures.optimal_against_default(trials, content.verdict),
        height_px=340,
    )


def _light(figure: go.Figure) -> go.Figure:
    for trace in figure.data:
        if len(trace.x) > _FAINT_POINTS:
            trace.update(hoverinfo="skip", hovertemplate=None)
            trace.line.width = 0.6
    return figure


SIZE_IN: Final = (6.4, 4.0)
PNG_DPI: Final = 200
_SYMBOLS: Final = {"diamond": "D", "square": "s", "x-thin": "x", "circle": "o"}
_OPEN: Final = "-open"


def files_of(pictures: Iterable[Picture]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file: NAME.svg, NAME.png and NAME.csv of each figure."""
    for picture in pictures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # matplotlib's, of letters its fonts do not have
            plate = draw(picture)
            yield f"{picture.name}.svg", _saved(plate, "svg")
            yield f"{picture.name}.png", _saved(plate, "png")
        yield f"{picture.name}.csv", points(picture.figure).encode()


def points(figure: go.Figure) -> str:
    """Return the points of a figure as CSV: trace, panel, x, y, standard deviation, text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trace", "panel", "x", "y", "std", "text"])
    for trace in figure.data:
        x, y, texts = _values(trace.x), _values(trace.y), _texts(trace)
        spread = list(trace.error_y.array or ()) or [None] * len(x)
        for row in zip(x, y, spread, texts, strict=True):
            if row[0] is not None:
                where = _label(figure, trace.xaxis or "x")
                writer.writerow([_plain(trace.name or ""), where, *row])
    return out.getvalue()


def draw(picture: Picture) -> "Figure":
    """Draw a figure of ours with matplotlib: scatter and bar traces, on any number of axes."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (a second that only --figures needs)

    figure = picture.figure
    pairs = list(dict.fromkeys((t.xaxis or "x", t.yaxis or "y") for t in figure.data))
    width, height = SIZE_IN
    plate = Figure(figsize=(width * (1 if len(pairs) == 1 else 1.6), height), layout="constrained")
    n_columns = min(4, len(pairs))
    n_rows = -(-len(pairs) // n_columns)
    grid = plate.subplots(n_rows, n_columns, squeeze=False, sharey=len(pairs) > 1)
    places = dict(zip(pairs, grid.flat, strict=False))
    for unused in list(grid.flat)[len(pairs) :]:
        unused.set_visible(False)
    for (x, y), axes in places.items():
        chosen = [t for t in figure.data if (t.xaxis or "x", t.yaxis or "y") == (x, y)]
        _panel(plate, axes, figure, chosen, x)
    plate.suptitle(picture.title, x=0.02, ha="left", fontsize=11)
    return plate


def _saved(plate: "Figure", ending: str) -> bytes:
    from matplotlib import rc_context  # noqa: PLC0415

    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "nbtl-search", "svg.fonttype": "none"}):
        metadata = {"Date": None} if ending == "svg" else {"Software": None}
        plate.savefig(out, format=ending, dpi=PNG_DPI, metadata=metadata)
    return out.getvalue()


def _panel(plate: "Figure", axes: "Axes", figure: go.Figure, chosen: Sequence[Any], x: str) -> None:
    horizontal = False
    bars = [trace for trace in chosen if trace.type == "bar"]
    for index, trace in enumerate(bars):
        horizontal = trace.orientation == "h"
        _bar(axes, trace, index, len(bars))
    drawn = [_scatter(axes, trace) for trace in chosen if trace.type == "scatter"]
    colours = [one for one in drawn if one is not None]
    if colours:
        _colour_scale(plate, axes, colours[0][0], colours[0][1])
    axis = figure.layout[x.replace("x", "xaxis")]
    if axis.type == "log":
        axes.set_xscale("log")
    y_range = figure.layout.yaxis.range
    if y_range is not None:
        axes.set_ylim(*y_range)
    axes.set_xlabel(_label(figure, x), fontsize=9, parse_math=False)
    place = axes.get_subplotspec()
    if place is not None and place.is_first_col():
        axes.set_ylabel(_plain(figure.layout.yaxis.title.text or ""), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, axis="x" if horizontal else "both", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if figure.layout.showlegend is not False and axes.get_legend_handles_labels()[0]:
        for label in axes.legend(fontsize=7, frameon=False, loc="best").get_texts():
            label.set_parse_math(False)


def _scatter(axes: "Axes", trace: Any) -> tuple[Any, Any] | None:
    x = [math.nan if value is None else value for value in _values(trace.x)]
    y = [math.nan if value is None else value for value in _values(trace.y)]
    label = None if trace.showlegend is False else _plain(trace.name or "")
    if trace.mode == "lines":
        line = trace.line
        style = "--" if line.dash == "dash" else "-"
        step: Any = "steps-post" if line.shape == "hv" else "default"
        width = line.width or 1.5
        axes.plot(x, y, style, color=line.color, linewidth=width, label=label, drawstyle=step)
        return None
    return _markers(axes, trace, (x, y), label)


def _markers(
    axes: "Axes", trace: Any, places: tuple[list[Any], list[Any]], label: str | None
) -> tuple[Any, Any] | None:
    marker = trace.marker
    symbols = marker.symbol if isinstance(marker.symbol, tuple) else [marker.symbol or "circle"]
    symbol = symbols[0]
    style: dict[str, Any] = {
        "marker": _SYMBOLS.get(symbol.removesuffix(_OPEN), "o"),
        "s": (0.75 * (marker.size or 6)) ** 2,
        "alpha": list(marker.opacity) if isinstance(marker.opacity, tuple) else marker.opacity,
        "label": label,
        "linewidths": 1.2 if symbol.endswith(_OPEN) else 0.0,
    }
    if isinstance(marker.color, tuple):
        scale = {"cmap": "viridis", "vmin": marker.cmin, "vmax": marker.cmax}
        style |= scale | {"c": list(marker.color)}
        return axes.scatter(*places, **style), marker.colorbar
    if symbol == "x-thin-open":
        axes.scatter(*places, color=marker.color, **style)
    elif symbol.endswith(_OPEN):
        axes.scatter(*places, facecolors="none", edgecolors=marker.color, **style)
    else:
        axes.scatter(*places, color=marker.color, **style)
    return None


def _bar(axes: "Axes", trace: Any, index: int, n_bars: int) -> None:
    x, y = _values(trace.x), _values(trace.y)
    if trace.orientation == "h":
        names = [_plain(name) for name in y]
        axes.barh(range(len(names)), x, color=trace.marker.color)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        return
    width = 0.8 / n_bars
    places = [place + (index - (n_bars - 1) / 2) * width for place in range(len(x))]
    spread = list(trace.error_y.array or ()) or None
    heights = [math.nan if value is None else value for value in y]
    label = _plain(trace.name or "")
    color = trace.marker.color
    axes.bar(places, heights, width, yerr=spread, color=color, label=label, capsize=3)
    ticks = axes.set_xticks(range(len(x)), [_plain(str(name)) for name in x])
    for tick in ticks:
        tick.label1.set_parse_math(False)


def _colour_scale(plate: "Figure", axes: "Axes", drawn: Any, bar: Any) -> None:
    scale = plate.colorbar(drawn, ax=axes, pad=0.02, aspect=35)
    scale.set_ticks(list(bar.tickvals), labels=list(bar.ticktext), fontsize=8)
    scale.set_label(bar.title.text, fontsize=8)
    if scale.solids is not None:
        scale.solids.set_alpha(1)


def _label(figure: go.Figure, x: str) -> str:
    return _plain(figure.layout[x.replace("x", "xaxis")].title.text or "")


def _plain(text: str) -> str:
    """Return a text of plotly's as it is shown."""
    return html.unescape(text).replace("<br>", ", ").translate(_ISOLATES)


def _values(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _texts(trace: Any) -> Iterator[str]:
    texts: Sequence[str] = trace.text if isinstance(trace.text, tuple) else [""] * len(trace.x)
    return (_plain(text) for text in texts)


_ISOLATES: Final[Mapping[int, None]] = {0x2068: None, 0x2069: None}
