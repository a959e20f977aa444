"""Comparison of trials: which is best, and how far it is ahead of the usual practice."""

from dataclasses import dataclass
from typing import Final

from nbtl_search.ledger.records import TrialRecord

ENDED: Final = ("complete", "pruned", "failed")
MIN_IMAGES: Final = 6  # 2 * 0.5**6 < 0.05 <= 2 * 0.5**5


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far the best trial is ahead of the default one, on one run each.

    It is a tie unless a two-sided sign test over the validation images could tell the two apart
    in the best of cases, where every image on which they differ speaks for the same one. Then k
    images give p = 2 * 0.5**k (Dietterich 1998, section 3.1, exact), so that fewer than
    `MIN_IMAGES` never reach 5 %. More images are no proof: seeds differ as well.
    """

    points: float
    n_images: int
    is_tie: bool

    def describe(self) -> str:
        """Return the difference and what it is worth, in words."""
        verdict = "a tie" if self.is_tie else "one run each: seeds differ too"
        images = "image" if self.n_images == 1 else "images"
        return f"{self.points:+.2f} points = {self.n_images} validation {images}, {verdict}"


def lead_of(best: TrialRecord | None, default: TrialRecord | None, *, n_val: int) -> Lead | None:
    """Return how far the best is ahead of the default, where both are complete and differ."""
    values = [trial.value for trial in (best, default) if trial and trial.state == "complete"]
    if len(values) < 2 or best == default or values[0] is None or values[1] is None:
        return None
    points = values[0] - values[1]
    n_images = round(points * n_val / 100)
    return Lead(points=points, n_images=n_images, is_tie=n_images < MIN_IMAGES)
