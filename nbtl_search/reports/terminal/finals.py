"""What `finalize` shows in a terminal: the two stages as tables, and what they say."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nbtl_search.reports.prose import mean_std
from nbtl_search.reports.terminal.tables import clean
from nbtl_search.spec.verdict import Contender, Entry, Interval, Verdict


def render(verdict: Verdict, *, name: str) -> RenderableType:
    """Return the verdict on a study as tables of at most 80 columns.

    Args:
        verdict: where its finalisation stands.
        name: of the study.
    """
    seeds = f"{verdict.n_confirm_seeds} seeds"
    parts: list[RenderableType] = [
        Text(f"validation top-1 after the last epoch, {seeds}", style="bold"),
        _confirmed(verdict),
    ]
    if verdict.entries:
        seeds = f"{verdict.n_test_seeds} seeds, trained on train and validation"
        parts += ["", Text(f"test top-1, {seeds}", style="bold"), _tested(verdict)]
    return Group(*parts, *map(Text, _remarks(verdict, name)))


def _confirmed(verdict: Verdict) -> RenderableType:
    table = _table("", "search", "mean", "bound", "gain")
    for contender in verdict.contenders:
        style = "bold" if contender.trial == verdict.winner else ""
        table.add_row(
            Text(clean(contender.name)),
            _mark(contender, verdict),
            f"{contender.search_top1:.2f}",
            mean_std(contender.confirmed),
            _number(contender.lower_bound),
            _interval(contender.gain),
            style=style,
        )
    return table


def _mark(contender: Contender, verdict: Verdict) -> str:
    if contender.trial == verdict.winner:
        return "winner"
    return "tie" if contender.is_tied_with_winner else ""


def _tested(verdict: Verdict) -> RenderableType:
    table = _table("single crop", "ten crops", "ensemble")
    for entry in verdict.entries:
        table.add_row(*_cells(entry))
    if verdict.gain is not None:
        ensemble = "" if verdict.ensemble_gain is None else f"{verdict.ensemble_gain:+.2f}"
        cells = (_interval(verdict.gain), _interval(verdict.ten_crop_gain), ensemble)
        table.add_row("gain", *cells, style="bold")
    return table


def _cells(entry: Entry) -> Iterator[Any]:
    yield Text(clean(entry.name))
    yield mean_std(entry.single)
    yield mean_std(entry.ten_crop)
    yield _number(entry.ensemble_top1)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", max_width=24)
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def _remarks(verdict: Verdict, name: str) -> Iterator[str]:
    yield ""
    if verdict.stage != "done":
        n_done = sum(run.state == "complete" for run in verdict.runs)
        yield (
            f"{n_done} of {len(verdict.runs)} runs planned so far have ended; "
            f"go on with: nbtl-search finalize {name}"
        )
        return
    if len(verdict.entries) == 1:
        yield "The default recipe won: no candidate had a higher lower confidence bound."
    elif verdict.gain is not None:
        yield f"The winner against the default, on the test images: {_worth(verdict.gain)}."
    readings = " and ".join(f"{each.opened_at:%Y-%m-%d %H:%M %Z}" for each in verdict.readings)
    times = "once" if len(verdict.readings) == 1 else f"{len(verdict.readings)} times"
    yield f"The test images were read {times}: {readings}."


def _worth(gain: Interval) -> str:
    if gain.is_tie:
        return "a tie (the interval of the gain holds zero)"
    return "better" if gain.mean > 0 else "worse"


def _interval(gain: Interval | None) -> str:
    if gain is None:
        return ""
    if gain.low is None or gain.high is None:
        return f"{gain.mean:+.2f}"
    return f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
