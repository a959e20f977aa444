"""What the final runs of a study say: the values that tables, pages and exports are made of."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from nbtl_search.spec import Dials

FinalStage = Literal["confirm", "test"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of runs that differ only in their seed."""

    n: int
    mean: float | None
    """None where n is 0."""
    std: float | None
    """None where n is less than 2."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval of a mean difference; without bounds where one pair is all there is."""

    n: int
    mean: float
    low: float | None
    high: float | None
    confidence: float = 0.95

    @property
    def is_tie(self) -> bool:
        """Tell whether zero lies inside, or whether nothing can be told."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


@dataclass(frozen=True, kw_only=True)
class FinalRun:
    """One run of a finalisation, as the ledger has it; accuracies in percent."""

    number: int
    """Its number among the final runs; its folder has this name too."""
    stage: FinalStage
    candidate: int
    """The number of the trial of the search whose dials it has."""
    seed: int
    state: str
    n_epochs: int
    seconds: float
    n_attempts: int
    val_top1: float | None
    """After the last epoch of the schedule; None until then, and in the test stage."""
    test: "TestScore | None"
    """None until the run has ended, in the confirm stage, and where there are no test images."""
    weights: "FinalWeights | None"
    """Of an ended run of the test stage."""


@dataclass(frozen=True, kw_only=True)
class TestScore:
    """What one run's last weights gave on the test images; accuracies in percent."""

    n_images: int
    top1: float
    """Single centre crop, as timm evaluates."""
    top5: float
    ten_crop_top1: float
    """Mean softmax over ten crops."""
    ten_crop_top5: float


@dataclass(frozen=True, kw_only=True)
class FinalWeights:
    """Where the weights of a run lie: a folder with model.safetensors and about.json."""

    host: str
    folder: str
    digest: str
    """sha256 of model.safetensors."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A candidate after the confirm stage."""

    trial: int
    name: str
    """'default', the name of a known recipe, or 'trial 17'."""
    dials: Dials
    search_top1: float
    """What the search saw: the best epoch of one run."""
    confirmed: Summary
    """Validation top-1 after the last epoch, over the seeds."""
    lower_bound: float | None
    """One-sided lower confidence bound of the mean, by which the winner is chosen."""
    gain: Interval | None
    """Over the default, paired by seed; None for the default itself."""
    is_tied_with_winner: bool


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The winner or the default in the test stage."""

    trial: int
    name: str
    dials: Dials
    single: Summary
    """Test top-1, single crop, over the seeds."""
    ten_crop: Summary
    ensemble_top1: float | None
    """Of the mean softmax over the seeds and ten crops; None until all runs have ended."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One time that a study's test images were opened."""

    round: int
    opened_at: datetime
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where the latest finalisation of a study stands."""

    round: int
    stage: Literal["confirm", "test", "done"]
    study: str
    """The name under which the runs of the latest stage stand in the dashboard: 'dtd@test-1'."""
    n_confirm_seeds: int
    n_test_seeds: int
    contenders: tuple[Contender, ...]
    """The default first, then by what the search saw."""
    winner: int | None
    """Its trial's number; None until the confirm stage is over."""
    entries: tuple[Entry, ...]
    """The default first; only one where the default itself won."""
    gain: Interval | None
    """Single crop, winner minus default, paired by seed."""
    ten_crop_gain: Interval | None
    ensemble_gain: float | None
    runs: tuple[FinalRun, ...]
    readings: tuple[Reading, ...]
