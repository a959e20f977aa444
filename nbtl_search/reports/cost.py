"""What a study has cost: runs, epochs, slot-seconds, and how much was run again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from nbtl_search.reports.content import Content

_STATES: Final = {
    "complete": "search: complete",
    "pruned": "search: stopped early",
    "failed": "search: failed",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the bill; an epoch repeated after a crash counts once, as the ledger keeps it."""

    name: str
    n_runs: int
    epochs: int
    seconds: float
    n_retried: int


def spending(content: Content) -> tuple[Part, ...]:
    """Return the parts that had any runs, and their sum."""
    parts = [part for part in _parts(content) if part.n_runs]
    total = Part(
        name="all",
        n_runs=sum(part.n_runs for part in parts),
        epochs=sum(part.epochs for part in parts),
        seconds=sum(part.seconds for part in parts),
        n_retried=sum(part.n_retried for part in parts),
    )
    return (*parts, total)


def _parts(content: Content) -> Iterator[Part]:
    for state, name in _STATES.items():
        chosen = [trial for trial in content.trials if trial.state == state]
        yield _part(name, ((t.n_epochs, t.seconds, t.n_attempts) for t in chosen))
    not_ended = [trial for trial in content.trials if trial.state not in _STATES]
    yield _part("search: not ended", ((t.n_epochs, t.seconds, t.n_attempts) for t in not_ended))
    for stage, name in (("confirm", "final runs: confirm"), ("test", "final runs: test")):
        runs = [] if content.verdict is None else content.verdict.runs
        chosen_runs = [run for run in runs if run.stage == stage]
        yield _part(name, ((r.n_epochs, r.seconds, r.n_attempts) for r in chosen_runs))


def _part(name: str, runs: Iterable[tuple[int, float, int]]) -> Part:
    known = list(runs)
    return Part(
        name=name,
        n_runs=len(known),
        epochs=sum(epochs for epochs, _, _ in known),
        seconds=sum(seconds for _, seconds, _ in known),
        n_retried=sum(n_attempts > 1 for _, _, n_attempts in known),
    )
