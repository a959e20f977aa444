"""An ablation as a table, as bars and in words: what each group of a recipe's dials is worth."""

import math
from collections.abc import Iterator
from typing import Final

import plotly.graph_objects as go

from nbtl_search.ledger.ledger import TERMINAL
from nbtl_search.reports import traces
from nbtl_search.reports.prose import isolated, mean_std
from nbtl_search.reports.table import Row, Table, count, interval, remark, spread, text
from nbtl_search.spec import SettingValue
from nbtl_search.spec.ablation import Ablation, Need, Worth

_NEEDS: Final[tuple[Need, ...]] = ("needed", "harmful", "not needed", "cannot be told")
_COLOURS: Final[dict[Need, str]] = {"needed": traces.GREEN, "harmful": traces.ORANGE}
ALL: Final = "all of them"


def ranked(found: Ablation) -> list[Worth]:
    """Return the groups, the most valuable first, then those that are not known yet."""
    return sorted(
        found.groups, key=lambda one: -math.inf if one.gain is None else one.gain.mean, reverse=True
    )


def table(found: Ablation) -> Table:
    """Return a row for each group, and one for all of them."""
    rows: tuple[Row, ...] = tuple(
        {
            "group": _name(worth, found),
            "n_seeds": None if worth.gain is None else worth.gain.n,
            "without_mean": worth.without.mean,
            "without_std": worth.without.std,
            "gain": None if worth.gain is None else worth.gain.mean,
            "gain_low": None if worth.gain is None else worth.gain.low,
            "gain_high": None if worth.gain is None else worth.gain.high,
            "need": worth.need,
            "n_failed": worth.n_failed,
            "changes": _changes(worth),
        }
        for worth in (*ranked(found), found.total)
    )
    columns = (
        text("group", "group"),
        count("seeds", "n_seeds"),
        spread("without it", "without"),
        interval("worth (95 % interval)", "gain", sign="+"),
        text("", "need"),
        remark("dials, and without it", "changes"),
    )
    # No name of a user's: Markdown shows a title as it is.
    title = (
        f"What each group of dials is worth in the recipe of trial {found.trial}, which has "
        f"{mean_std(found.recipe)} % on the validation images"
    )
    return Table(name="ablation", title=title, rows=rows, columns=columns)


def bars(found: Ablation) -> go.Figure:
    """Draw what each group is worth as a bar with its interval, the most valuable on top."""
    figure = traces.empty("What each group is worth", x="points of validation top-1", y="")
    known = [(one, one.gain) for one in (*ranked(found), found.total) if one.gain is not None]
    bar = go.Bar(
        x=[round(gain.mean, 2) for _, gain in known],
        y=[_name(worth, found) for worth, _ in known],
        error_x={"array": [round(gain.high - gain.mean, 2) for _, gain in known], "thickness": 1.2},
        orientation="h",
        marker={"color": [_COLOURS.get(worth.need, traces.FAINT) for worth, _ in known]},
        text=[worth.need for worth, _ in known],
        textposition="none",
        hovertemplate="%{y}: %{x} ± %{error_x.array}, %{text}<extra></extra>",
        name="worth",
    )
    if known:
        figure.add_trace(bar)
    figure.update_xaxes(zeroline=True, zerolinecolor="#999999")
    figure.update_yaxes(autorange="reversed", automargin=True, **traces.AXIS, ticksuffix=" ")
    return figure.update_layout(showlegend=False)


def sentences(found: Ablation) -> Iterator[str]:
    """Yield what the runs say, as plain text."""
    seeds = "seed" if found.recipe.n == 1 else "seeds"
    yield (
        f"The recipe of {_recipe_of(found)} has {mean_std(found.recipe)} % on the validation "
        f"images over {found.recipe.n} {seeds}, the default {mean_std(found.total.without)} %."
    )
    if not found.is_done:
        n_ended = sum(run.state in TERMINAL for run in found.runs)
        yield f"{n_ended} of {len(found.runs)} runs planned so far have ended."
    if len(found.groups) == 1:
        yield (
            f"They differ in one group only, {found.groups[0].group}: without it, the default is "
            "what is left."
        )
    for need in _NEEDS:
        names = [one.name for one in ranked(found) if one.need == need]
        if names and found.is_done:
            yield f"{need.capitalize()}: {', '.join(names)}."
    n_failed = sum(run.state == "failed" for run in found.runs)
    if n_failed:
        runs = "run" if n_failed == 1 else "runs"
        yield f"{n_failed} {runs} failed, and what failed runs no more; the logs say why."


def _name(worth: Worth, found: Ablation) -> str:
    return ALL if worth == found.total else worth.name


def _recipe_of(found: Ablation) -> str:
    """Return how a text names the recipe: by its name and its trial."""
    number = f"trial {found.trial}"
    return number if found.name == number else f"{isolated(found.name)} ({number})"


def _changes(worth: Worth) -> str:
    """Return the dials that differ, with the values in the recipe and without the group."""
    return ", ".join(
        f"{dial} {_plain(ours)}, without {_plain(theirs)}"
        for dial, (ours, theirs) in worth.changes.items()
    )


def _plain(value: SettingValue) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
