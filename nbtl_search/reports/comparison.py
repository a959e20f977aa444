"""Which trial is best, how far it is ahead of the usual practice, and how long it may take."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from nbtl_search.ledger.records import Totals, TrialRecord
from nbtl_search.spec import Budget

ENDED: Final = ("complete", "pruned", "failed")
MIN_IMAGES: Final = 6  # 2 * 0.5**6 < 0.05 <= 2 * 0.5**5


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How far the best trial is ahead of the default one, on one run each.

    It is a tie unless a two-sided sign test over the validation images could tell the two apart
    in the best of cases, where every image on which they differ speaks for the same one. Then k
    images give p = 2 * 0.5**k (Dietterich 1998, section 3.1, exact), so that fewer than
    `MIN_IMAGES` never reach 5 %. More images are no proof: seeds differ as well.
    """

    points: float
    n_images: int
    is_tie: bool

    def words(self) -> str:
        """Return the difference and what it is worth, in words."""
        verdict = "a tie" if self.is_tie else "one run each: seeds differ too"
        images = "image" if self.n_images == 1 else "images"
        return f"{self.points:+.2f} points = {self.n_images} validation {images}, {verdict}"


def gain_of(best: TrialRecord | None, default: TrialRecord | None, *, n_val: int) -> Gain | None:
    """Return how far the best is ahead of the default, where both are complete and differ."""
    values = [trial.value for trial in (best, default) if trial and trial.state == "complete"]
    if len(values) < 2 or best == default or values[0] is None or values[1] is None:
        return None
    points = values[0] - values[1]
    n_images = round(points * n_val / 100)
    return Gain(points=points, n_images=n_images, is_tie=n_images < MIN_IMAGES)


def time_left_s(
    totals: Totals,
    trials: Sequence[TrialRecord],
    *,
    n_workers: int,
    n_epochs: int,
    budget: Budget,
) -> float | None:
    """Estimate when the study ends, from what its epochs and trials have cost so far.

    A trial is expected to take as many epochs as those that ended took on average; before any
    ended, the whole schedule. A budget in epochs or slot-hours may end the study earlier.

    Returns:
        0 for a finished study; None where nothing runs, or nothing has been measured yet.
    """
    if totals.state == "finished":
        return 0.0
    if totals.state != "running" or n_workers == 0 or totals.epochs_spent == 0:
        return None
    ended = [trial.n_epochs for trial in trials if trial.state in ENDED]
    usual = fmean(ended) if ended else float(n_epochs)
    begun = [trial for trial in trials if trial.state not in ENDED]
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
