"""Static figures: a report's figures as files for a paper, SVG and PNG by matplotlib, and CSV.

Each is drawn from the page's figure, so that both show the same points.
"""

import csv
import html
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import plotly.graph_objects as go

from nbtl_search.reports.figures import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SIZE_IN: Final = (6.4, 4.0)
PNG_DPI: Final = 200
_SYMBOLS: Final = {"diamond": "D", "square": "s", "x-thin": "x", "circle": "o"}
_OPEN: Final = "-open"


def files_of(figures: Iterable[Figure]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file: NAME.svg, NAME.png and NAME.csv of each figure."""
    for figure in figures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # matplotlib's, of letters its fonts do not have
            canvas = draw(figure)
            yield f"{figure.name}.svg", _saved(canvas, "svg")
            yield f"{figure.name}.png", _saved(canvas, "png")
        yield f"{figure.name}.csv", points(figure.plot).encode()


def points(plot: go.Figure) -> str:
    """Return the points of a figure as CSV: trace, panel, x, y, standard deviation, text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trace", "panel", "x", "y", "std", "text"])
    for trace in plot.data:
        x, y, texts = _values(trace.x), _values(trace.y), _texts(trace)
        spread = _spread(trace) or [None] * len(x)
        for row in zip(x, y, spread, texts, strict=True):
            if row[0] is not None:
                where = _label(plot, trace.xaxis or "x")
                writer.writerow([_plain(trace.name or ""), where, *row])
    return out.getvalue()


def draw(figure: Figure) -> "Canvas":
    """Draw a figure of ours with matplotlib: scatter and bar traces, on any number of axes."""
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415  (slow)

    plot = figure.plot
    pairs = list(dict.fromkeys((t.xaxis or "x", t.yaxis or "y") for t in plot.data))
    width, height = SIZE_IN
    canvas = Canvas(figsize=(width * (1 if len(pairs) == 1 else 1.6), height), layout="constrained")
    n_columns = min(4, len(pairs))
    n_rows = -(-len(pairs) // n_columns)
    grid = canvas.subplots(n_rows, n_columns, squeeze=False, sharey=len(pairs) > 1)
    places = dict(zip(pairs, grid.flat, strict=False))
    for unused in list(grid.flat)[len(pairs) :]:
        unused.set_visible(False)
    for (x, y), axes in places.items():
        chosen = [t for t in plot.data if (t.xaxis or "x", t.yaxis or "y") == (x, y)]
        _panel(canvas, axes, plot, chosen, x)
    canvas.suptitle(figure.title, x=0.02, ha="left", fontsize=11)
    return canvas


def _saved(canvas: "Canvas", ending: str) -> bytes:
    from matplotlib import rc_context  # noqa: PLC0415

    out = io.BytesIO()
    # Neither dates nor random ids: the same study gives the same bytes, so that git sees no change.
    with rc_context({"svg.hashsalt": "nbtl-search", "svg.fonttype": "none"}):
        metadata = {"Date": None} if ending == "svg" else {"Software": None}
        canvas.savefig(out, format=ending, dpi=PNG_DPI, metadata=metadata)
    return out.getvalue()


def _panel(canvas: "Canvas", axes: "Axes", plot: go.Figure, chosen: Sequence[Any], x: str) -> None:
    horizontal = False
    bars = [trace for trace in chosen if trace.type == "bar"]
    for index, trace in enumerate(bars):
        horizontal = trace.orientation == "h"
        _bar(axes, trace, index, len(bars))
    drawn = [_scatter(axes, trace) for trace in chosen if trace.type == "scatter"]
    colours = [one for one in drawn if one is not None]
    if colours:
        _colour_scale(canvas, axes, colours[0][0], colours[0][1])
    axis = plot.layout[x.replace("x", "xaxis")]
    if axis.type == "log":
        axes.set_xscale("log")
    y_range = plot.layout.yaxis.range
    if y_range is not None:
        axes.set_ylim(*y_range)
    axes.set_xlabel(_label(plot, x), fontsize=9, parse_math=False)
    place = axes.get_subplotspec()
    if place is not None and place.is_first_col():
        axes.set_ylabel(_plain(plot.layout.yaxis.title.text or ""), fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, axis="x" if horizontal else "both", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if plot.layout.showlegend is not False and axes.get_legend_handles_labels()[0]:
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
        color = trace.marker.color
        axes.barh(range(len(names)), x, xerr=_spread(trace), color=color, capsize=3)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        return
    width = 0.8 / n_bars
    places = [place + (index - (n_bars - 1) / 2) * width for place in range(len(x))]
    spread = _spread(trace)
    heights = [math.nan if value is None else value for value in y]
    label = _plain(trace.name or "")
    color = trace.marker.color
    axes.bar(places, heights, width, yerr=spread, color=color, label=label, capsize=3)
    ticks = axes.set_xticks(range(len(x)), [_plain(str(name)) for name in x])
    for tick in ticks:
        tick.label1.set_parse_math(False)


def _spread(trace: Any) -> list[Any] | None:
    """Return the lengths of a trace's whiskers; None where it has none."""
    is_flat = trace.type == "bar" and trace.orientation == "h"
    return list((trace.error_x if is_flat else trace.error_y).array or ()) or None


def _colour_scale(canvas: "Canvas", axes: "Axes", drawn: Any, bar: Any) -> None:
    scale = canvas.colorbar(drawn, ax=axes, pad=0.02, aspect=35)
    scale.set_ticks(list(bar.tickvals), labels=list(bar.ticktext), fontsize=8)
    scale.set_label(bar.title.text, fontsize=8)
    if scale.solids is not None:
        scale.solids.set_alpha(1)


def _label(plot: go.Figure, x: str) -> str:
    return _plain(plot.layout[x.replace("x", "xaxis")].title.text or "")


def _plain(text: str) -> str:
    """Return a text of plotly's as it is shown."""
    return html.unescape(text).replace("<br>", ", ").translate(_ISOLATES)


def _values(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _texts(trace: Any) -> Iterator[str]:
    texts: Sequence[str] = trace.text if isinstance(trace.text, tuple) else [""] * len(trace.x)
    return (_plain(text) for text in texts)


_ISOLATES: Final[Mapping[int, None]] = {0x2068: None, 0x2069: None}
