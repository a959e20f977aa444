"""Tables for a terminal of 80 columns: trials, workers, studies."""

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nbtl_search.ledger.records import TrialRecord, WorkerRecord, ranked
from nbtl_search.study.store import StudySummary

MAX_TRIALS: Final = 30
_MAX_WORKERS: Final = 8
_N_BEST: Final = 10
_COLUMNS: Final = (
    "#",
    "name",
    "state",
    "top-1",
    "epoch",
    "new",
    "lr",
    "head",
    "low",
    "L2-SP",
    "L2",
)
_RIGHT: Final = ("#", "top-1", "epoch", "new")
_LEGEND: Final = (
    "new: layers reinitialised; lr: of the blocks from `low` up; head, low: their rates x lr; "
    "L2-SP: blocks pulled to their old weights @ strength; L2: pull to zero elsewhere"
)
_WANTED: Final = {"run": "run", "pause": "paused", "stop": "stopped"}
_STYLES: Final = {
    "running": "cyan",
    "complete": "green",
    "finished": "green",
    "pruned": "dim",
    "failed": "red",
    "stopped": "red",
    "paused": "yellow",
    "idle": "yellow",
}


def of_trials(
    trials: Sequence[TrialRecord],
    *,
    n_epochs: int,
    best: int | None,
    default: int | None,
    show_all: bool,
) -> RenderableType:
    """Return a line per trial with its dials; of many trials only those worth a look.

    Args:
        trials: of the study, by number.
        n_epochs: length of the schedule.
        best: number of the best trial, which stands out.
        default: number of the default recipe's trial, which is always there.
        show_all: leave none out.
    """
    shown = list(trials) if show_all else worth_a_look(trials, default=default)
    table = _table(*_COLUMNS)
    for column in table.columns:
        column.no_wrap = column.header != "name"
    for trial in shown:
        style = "bold" if trial.number == best else "dim" if trial.state == "pruned" else ""
        cells: list[str | Text] = [str(trial.number), clean(trial.name)]
        table.add_row(*cells, *_result(trial, n_epochs), *_dials(trial), style=style)
    legend = Text(_LEGEND, style="dim")
    if len(shown) == len(trials):
        return Group(table, legend)
    more = Text(f"{len(trials) - len(shown)} more trials: --all", style="dim")
    return Group(table, more, legend)


def worth_a_look(trials: Sequence[TrialRecord], *, default: int | None) -> list[TrialRecord]:
    """Return at most `MAX_TRIALS`, by number: the default, the best, open ones, the latest."""
    best = ranked(trials)[:_N_BEST]
    is_open = [trial for trial in trials if trial.finished_at is None]
    baseline = [trial for trial in trials if trial.number == default]
    wanted = [*baseline, *best, *reversed(is_open), *reversed(trials)]
    kept = set(list(dict.fromkeys(trial.number for trial in wanted))[:MAX_TRIALS])
    return [trial for trial in trials if trial.number in kept]


def of_workers(workers: Sequence[WorkerRecord], *, show_all: bool) -> RenderableType:
    """Return a line per worker; the first few of many."""
    table = _table("worker", "device", "does", "trial", "seen")
    shown = workers if show_all else workers[:_MAX_WORKERS]
    for worker in shown:
        table.add_row(
            clean(worker.worker),
            clean(worker.device),
            clean(worker.state),
            "" if worker.trial_number is None else str(worker.trial_number),
            f"{max(0.0, worker.seen_s):.0f} s ago",
        )
    if len(shown) == len(workers):
        return table
    return Group(table, Text(f"{len(workers) - len(shown)} more workers: --all", style="dim"))


def of_queue(tasks: Sequence[Mapping[str, str]] | None) -> list[RenderableType]:
    """Return a line per state of the tasks in a cluster's queue, with nodes or reasons."""
    if tasks is None:
        return [Text("queue    unknown: squeue does not answer", style="yellow")]
    if not tasks:
        return [Text("queue    no tasks; nbtl-search launch STUDY --slurm submits some")]
    lines: list[RenderableType] = []
    for state in sorted({task["state"] for task in tasks}):
        there = [task for task in tasks if task["state"] == state]
        where = sorted({task["node"] or task["reason"] for task in there})
        told = f"queue    {len(there)} {state.lower()}: {', '.join(map(clean, where))}"
        lines.append(Text(told))
    return lines


def of_studies(summaries: Sequence[StudySummary]) -> RenderableType:
    """Return a line per study."""
    table = _table("study", "wanted", "trials ended", "created (UTC)")
    for summary in summaries:
        table.add_row(
            clean(summary.name),
            state_text(_WANTED.get(summary.desired, summary.desired)),
            f"{summary.n_finished}/{summary.n_trials}",
            f"{summary.created_at.astimezone(UTC):%Y-%m-%d %H:%M}",
        )
    return table


def span(seconds: float) -> str:
    """Return a span of time in its two largest units.

    >>> span(3725)
    '1 h 02 min'
    """
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"


def state_text(state: str) -> Text:
    """Return a state in its colour."""
    return Text(state, style=_STYLES.get(state, ""))


def clean(text: str) -> str:
    """Replace what a terminal would obey instead of show."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _result(trial: TrialRecord, n_epochs: int) -> tuple[Text, str, str]:
    why = trial.cause if trial.state in {"pruned", "failed"} else None
    state = Text(clean(why or trial.state), style=_STYLES.get(trial.state, ""))
    value = trial.value if trial.value is not None else trial.last_top1
    return state, "" if value is None else f"{value:.2f}", f"{trial.n_epochs}/{n_epochs}"


def _dials(trial: TrialRecord) -> tuple[str, ...]:
    dials = trial.dials
    return (
        str(dials.reinit_layers),
        _short(dials.lr_high),
        _short(dials.lr_head_ratio),
        f"{dials.n_low}x{_short(dials.lr_low_ratio)}" if dials.n_low else "",
        f"{dials.n_l2sp}@{_short(dials.alpha)}" if dials.n_l2sp else "",
        _short(dials.beta),
    )


def _short(value: float) -> str:
    """Return a number with two significant digits, in at most 6 characters."""
    if value == 0:
        return "0"
    if 0.01 <= value < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold", justify="right" if header in _RIGHT else "left")
    return table
