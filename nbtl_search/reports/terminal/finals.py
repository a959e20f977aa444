"""Final runs in a terminal: the two stages as tables, and what they say."""

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from nbtl_search.reports.prose import mean_std, unmade_remark
from nbtl_search.reports.table import Column, Row, Table, count, number, terminal, text_of
from nbtl_search.spec.verdict import Contender, Interval, Verdict

_NAME: Final = Column(title="", show=lambda row: text_of(row["name"]), is_text=True, max_width=24)


def render(verdict: Verdict, *, name: str) -> RenderableType:
    """Return the verdict on a study as tables of at most 80 columns.

    Args:
        verdict: where its finalisation stands.
        name: of the study.
    """
    seeds = f"up to {verdict.n_confirm_seeds} seeds"
    parts: list[RenderableType] = [
        Text(f"validation top-1 after the last epoch, {seeds}", style="bold"),
        _confirmed(verdict),
    ]
    if verdict.entries:
        seeds = f"{verdict.n_test_seeds} seeds, trained on train and validation"
        parts += ["", Text(f"test top-1, {seeds}", style="bold"), _tested(verdict)]
    return Group(*parts, *map(Text, _remarks(verdict, name)))


def _confirmed(verdict: Verdict) -> RenderableType:
    rows: tuple[Row, ...] = tuple(
        {
            "name": contender.name,
            "mark": _mark(contender),
            "search": contender.search_top1,
            "mean": mean_std(contender.confirmed),
            "value": None if contender.value is None else contender.value.mean,
            "gain": _interval(contender.gain),
        }
        for contender in verdict.contenders
    )
    columns = (
        _NAME,
        Column(title="", show=lambda row: str(row["mark"]), is_text=True, is_whole=True),
        number("search", "search", none=""),
        count("mean", "mean"),
        number("value", "value", none=""),
        count("gain", "gain"),
    )
    made = Table(name="contenders", title="Candidates", rows=rows, columns=columns)
    return terminal(made, gap=2, emphasis=lambda row: "bold" if row["mark"] == "winner" else "")


def _mark(contender: Contender) -> str:
    if contender.is_winner:
        return "winner"
    return "tie" if contender.is_tied_with_winner else ""


def _tested(verdict: Verdict) -> RenderableType:
    rows: list[Row] = [
        {
            "name": entry.name,
            "single": mean_std(entry.single),
            "ten_crop": mean_std(entry.ten_crop),
            "ensemble": "" if entry.ensemble_top1 is None else f"{entry.ensemble_top1:.2f}",
            "is_gain": False,
        }
        for entry in verdict.entries
    ]
    if verdict.gain is not None:
        ensemble = "" if verdict.ensemble_gain is None else f"{verdict.ensemble_gain:+.2f}"
        rows.append(
            {
                "name": "gain",
                "single": _interval(verdict.gain),
                "ten_crop": _interval(verdict.ten_crop_gain),
                "ensemble": ensemble,
                "is_gain": True,
            }
        )
    columns = (
        _NAME,
        count("single crop", "single"),
        count("ten crops", "ten_crop"),
        count("ensemble", "ensemble"),
    )
    made = Table(name="final", title="Test images", rows=tuple(rows), columns=columns)
    return terminal(made, gap=2, emphasis=lambda row: "bold" if row["is_gain"] else "")


def _remarks(verdict: Verdict, name: str) -> Iterator[str]:
    yield ""
    if verdict.stage != "done":
        n_done = sum(run.state == "complete" for run in verdict.runs)
        yield (
            f"{n_done} of {len(verdict.runs)} runs planned so far have ended; "
            f"go on with: nbtl-search finalize {name}"
        )
        return
    if verdict.unmade:
        yield unmade_remark(verdict)
    if len(verdict.entries) == 1 and not verdict.unmade:
        yield "The default recipe won: validation favoured no other candidate."
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
    return f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
