"""Cost of a study: runs, epochs and slot-seconds so far, what was run again, and the time left."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from nbtl_search.ledger.ledger import TERMINAL
from nbtl_search.ledger.records import Totals, TrialRecord
from nbtl_search.spec import Budget
from nbtl_search.spec.ablation import Ablation
from nbtl_search.spec.verdict import Verdict

_AT_REST: Final = (*TERMINAL, "paused")
_LINES: Final = (
    "search: complete",
    "search: repeats",
    "search: stopped early",
    "search: cancelled, or cannot be trained",
    "search: failed",
    "search: not ended",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the bill; an epoch repeated after a crash counts once, as the ledger keeps it."""

    name: str
    n_runs: int
    epochs: int
    seconds: float
    n_retried: int


def spending(
    trials: Sequence[TrialRecord], verdict: Verdict | None, ablation: Ablation | None = None
) -> tuple[Part, ...]:
    """Return the parts that had any runs, and their sum."""
    parts = [part for part in _parts(trials, verdict, ablation) if part.n_runs]
    total = Part(
        name="all",
        n_runs=sum(part.n_runs for part in parts),
        epochs=sum(part.epochs for part in parts),
        seconds=sum(part.seconds for part in parts),
        n_retried=sum(part.n_retried for part in parts),
    )
    return (*parts, total)


def _parts(
    trials: Sequence[TrialRecord], verdict: Verdict | None, ablation: Ablation | None
) -> Iterator[Part]:
    for name in _LINES:
        chosen = [trial for trial in trials if _line_of(trial) == name]
        yield _part(name, ((t.n_epochs, t.seconds, t.n_attempts) for t in chosen))
    for stage, name in (("confirm", "final runs: confirm"), ("test", "final runs: test")):
        runs = [] if verdict is None else verdict.runs
        chosen_runs = [run for run in runs if run.stage == stage]
        yield _part(name, ((r.n_epochs, r.seconds, r.n_attempts) for r in chosen_runs))
    ablated = () if ablation is None else ablation.runs
    yield _part("ablation", ((r.n_epochs, r.seconds, r.n_attempts) for r in ablated))


def _line_of(trial: TrialRecord) -> str:
    complete, repeats, stopped, unable, failed, not_ended = _LINES
    match trial.state:
        case "complete":
            return complete if trial.repeat_of is None else repeats
        case "pruned":
            return stopped if trial.cause is None else unable
        case "failed":
            return failed
        case _:
            return not_ended


def _part(name: str, runs: Iterable[tuple[int, float, int]]) -> Part:
    known = list(runs)
    return Part(
        name=name,
        n_runs=len(known),
        epochs=sum(epochs for epochs, _, _ in known),
        seconds=sum(seconds for _, seconds, _ in known),
        n_retried=sum(n_attempts > 1 for _, _, n_attempts in known),
    )


def time_left_s(
    totals: Totals,
    trials: Sequence[TrialRecord],
    *,
    n_workers: int,
    n_epochs: int,
    budget: Budget,
) -> float | None:
    """Estimate when the study ends, from what its epochs and trials have cost so far.

    A trial is expected to take as many epochs as those that ended or are paused took on average;
    before there are any, the whole schedule. A budget in epochs or slot-hours may end the study
    earlier.

    Returns:
        0 for a finished study; None where nothing runs, or nothing has been measured yet.
    """
    if totals.state == "finished":
        return 0.0
    if totals.state != "running" or n_workers == 0 or totals.epochs_spent == 0:
        return None
    at_rest = [trial.n_epochs for trial in trials if trial.state in _AT_REST]
    usual = fmean(at_rest) if at_rest else float(n_epochs)
    begun = [trial for trial in trials if trial.state not in _AT_REST]
    n_unborn = max(0, totals.waiting + totals.running - len(begun))
    open_epochs = sum(_left(trial.n_epochs, usual, n_epochs) for trial in begun)
    epoch_s = totals.seconds_spent / totals.epochs_spent
    work_s = (open_epochs + _allowed(n_unborn * usual, totals.epochs_spent, budget)) * epoch_s
    if budget.gpu_h is not None:
        slot_s = max(0.0, budget.gpu_h * 3600 - totals.seconds_spent)
        work_s = min(work_s, slot_s + open_epochs * epoch_s)
    return work_s / max(1, min(n_workers, len(begun) + n_unborn))


def _left(done: int, usual: float, n_epochs: int) -> float:
    """Return the epochs a begun trial still has: one that outlived the usual goes to the end."""
    return usual - done if done < usual else float(max(0, n_epochs - done))


def _allowed(epochs: float, spent: int, budget: Budget) -> float:
    return epochs if budget.epochs is None else min(epochs, max(0, budget.epochs - spent))
