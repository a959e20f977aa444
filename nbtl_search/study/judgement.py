"""Judgement of a finalisation's candidates: what each is worth, which are still in, which wins.

A candidate is judged by all its runs, each by validation top-1 after its last epoch: those of the
confirm stage and those that the search had, so that the luck that chose it is shrunken away with
the rest (`evidence.values`) and no run is thrown away.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nbtl_search.evidence.values import Values, values_of
from nbtl_search.ledger import records
from nbtl_search.ledger.ledger import TERMINAL
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.spec.verdict import Candidate

HOPELESS: Final = 0.05
"""A candidate that is better than the best with less than this probability gets no more seeds."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A planned run of the confirm stage."""

    candidate: Candidate
    state: str | None
    """None before it has begun."""
    value: float | None

    @property
    def is_broken(self) -> bool:
        """Tell whether it ended without a result."""
        return self.state in TERMINAL and self.state != "complete"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is known of the candidates."""

    values: Values[Candidate]
    default: Candidate
    eligible: Sequence[Candidate]
    """Those that could be trained with every seed, recipes before averages of them."""

    @property
    def winner(self) -> Candidate | None:
        """Return the most valuable candidate; None where none is eligible.

        A gain of less than one validation image is none: then the default wins where it is as good
        as that, and else a recipe before averages.
        """
        level = self.values.level_with_best(self.eligible)
        return min(level, key=lambda one: (one != self.default, len(one) > 1), default=None)

    def still_in(self) -> list[Candidate]:
        """Return the candidates that further runs could show to be the best."""
        best = self.winner
        return [
            one
            for one in self.eligible
            if one == best or best is None or self.values.probability_better(one, best) >= HOPELESS
        ]

    def is_tie(self, one: Candidate, other: Candidate) -> bool:
        """Tell whether the runs cannot tell two candidates apart."""
        if one not in self.values.by or other not in self.values.by:
            return True
        return self.values.gain(one, other).is_tie


def judge(
    runs: Sequence[Run], trials: Iterable[TrialRecord], *, default: int, n_images: int
) -> Judgement:
    """Return what the runs of a confirm stage and of the search say of its candidates.

    Args:
        runs: of the confirm stage.
        trials: of the search, which are the candidates and all that they are compared with.
        default: the number of the default recipe's trial.
        n_images: for validation.
    """
    found: dict[Candidate, list[float]] = {
        (number,): [trial.last_top1 for trial in whole if trial.last_top1 is not None]
        for number, whole in records.by_recipe(trials).items()
    }
    for run in runs:
        values = found.setdefault(run.candidate, [])
        values += [run.value] if run.state == "complete" and run.value is not None else []
    return Judgement(
        values=values_of(
            {one: values for one, values in found.items() if len(one) == 1},
            others={one: values for one, values in found.items() if len(one) > 1},
            n_images=n_images,
        ),
        default=(default,),
        eligible=_eligible(runs, found),
    )


def _eligible(runs: Sequence[Run], values: Mapping[Candidate, Sequence[float]]) -> list[Candidate]:
    broken = {run.candidate for run in runs if run.is_broken}
    whole = [
        one
        for one in dict.fromkeys(run.candidate for run in runs)
        if values[one] and broken.isdisjoint({one, *((number,) for number in one)})
    ]
    return sorted(whole, key=lambda one: (len(one), one))
