"""The figures of a report: which there are, what they are called, and what to see in them."""

from collections.abc import Iterator
from dataclasses import dataclass

import plotly.graph_objects as go

from nbtl_search.reports.content import Content
from nbtl_search.reports.drawing import figures, importance, paper_figures

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
