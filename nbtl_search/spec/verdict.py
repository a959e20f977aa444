"""The verdict of a finalisation, and the scores, intervals and runs that it is made of.

One value has one shape everywhere: a `TestScore` is made by the trainer, and the same value is
sent to the supervisor, stored by the ledger, and shown in tables, pages and model cards.
"""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import PlainSerializer

from nbtl_search.spec.recipe import AtLeastOne, Count, Dials, NonNegative, Percentage
from nbtl_search.spec.values import Value

FinalStage = Literal["confirm", "test"]
Candidate = tuple[int, ...]
"""The number of a trial, or those of several whose weights are averaged."""

# `finalize --json` has printed dials as this text from its first version; scripts may read it.
_DialsAsText = Annotated[Dials, PlainSerializer(str)]


class Summary(Value):
    """Mean and sample standard deviation (n - 1) of runs that differ only in their seed."""

    n: Count
    mean: float | None
    """None where n is 0."""
    std: float | None
    """None where n is less than 2."""


class Interval(Value):
    """A confidence interval of a mean difference."""

    n: AtLeastOne
    mean: float
    low: float
    high: float
    confidence: float = 0.95

    @property
    def is_tie(self) -> bool:
        """Tell whether zero lies inside."""
        return self.low <= 0.0 <= self.high

    def describe(self) -> str:
        """Return the difference and what it is worth, in words."""
        worth = "a tie" if self.is_tie else "better" if self.mean > 0 else "worse"
        return f"{self.mean:+.2f} points [{self.low:+.2f}, {self.high:+.2f}]: {worth}"


class Estimate(Value):
    """What a recipe gives on average over seeds, in percent: a shrunken mean and its interval."""

    n: AtLeastOne
    """Runs that it rests on."""
    mean: float
    low: float
    high: float
    confidence: float = 0.95

    def describe(self) -> str:
        """Return it in words, such as '81.20 % [78.90, 83.50], 3 runs'."""
        runs = "1 run" if self.n == 1 else f"{self.n} runs"
        return f"{self.mean:.2f} % [{self.low:.2f}, {self.high:.2f}], {runs}"


class TestScore(Value):
    """What the last weights of one run gave on the test images; accuracies in percent."""

    __test__: ClassVar[bool] = False  # no class of tests, whatever pytest takes it for

    n_images: AtLeastOne
    top1: Percentage
    """Single centre crop, as timm evaluates."""
    top5: Percentage
    """With fewer than five classes top-5 takes all of them."""
    ten_crop_top1: Percentage
    """Mean softmax over ten crops."""
    ten_crop_top5: Percentage


class FinalWeights(Value):
    """Where the weights of a run lie: a folder with model.safetensors and about.json."""

    host: str
    folder: str
    digest: str
    """sha256 of model.safetensors."""


class FinalResult(Value):
    """What a run of the test stage leaves; its predictions lie in the folder of its weights."""

    score: TestScore
    weights: FinalWeights


class FinalRun(Value):
    """One run of a finalisation, as the ledger has it; accuracies in percent."""

    number: Count
    """Its number among the final runs; its folder has this name too."""
    stage: FinalStage
    candidate: Count
    """The number of the trial of the search whose dials it has."""
    averaged: tuple[Count, ...] = ()
    """Of an average of weights: the trials whose runs with this seed it is made of."""
    seed: Count
    state: str
    n_epochs: Count
    seconds: NonNegative
    n_attempts: Count
    val_top1: float | None
    """After the last epoch of the schedule; None until then, and in the test stage."""
    test: TestScore | None
    """None until the run has ended, in the confirm stage, and where there are no test images."""
    weights: FinalWeights | None
    """Of an ended run of the test stage."""

    @property
    def trials(self) -> tuple[int, ...]:
        """Return what names its candidate: one trial, or those whose weights are averaged."""
        return self.averaged or (self.candidate,)


class Contender(Value):
    """A candidate after the confirm stage."""

    trial: Count
    """Of an average of weights the first of its trials; name and dials likewise."""
    averaged: tuple[Count, ...] = ()
    """The trials whose weights are averaged, seed by seed; empty for a recipe alone."""
    name: str
    """'default', the name of a known recipe, 'trial 17', or 'average of ' and such names."""
    dials: _DialsAsText
    search_top1: float | None
    """What the search saw: the best epoch of one run; None for an average, which it did not try."""
    confirmed: Summary
    """Validation top-1 after the last epoch, over the seeds."""
    value: Estimate | None
    """What it is worth by these runs and the search's, by which the winner is chosen; None for one
    that could not be trained with every seed."""
    gain: Interval | None
    """Over the default with the same seeds; None for the default itself."""
    is_tied_with_winner: bool
    is_winner: bool = False


class Entry(Value):
    """The default, the winner, or a recipe whose weights are part of it, in the test stage."""

    trial: Count
    averaged: tuple[Count, ...] = ()
    """As in `Contender`."""
    name: str
    dials: _DialsAsText
    single: Summary
    """Test top-1, single crop, over the seeds."""
    ten_crop: Summary
    ensemble_top1: float | None
    """Of the mean softmax over the seeds and ten crops; None until all runs have ended."""

    @property
    def trials(self) -> tuple[int, ...]:
        """Return what names it, as `FinalRun.trials`."""
        return self.averaged or (self.trial,)


class TestSetReading(Value):
    """One time that a study's test images were opened."""

    __test__: ClassVar[bool] = False

    round: AtLeastOne
    opened_at: datetime
    reason: str


class Verdict(Value):
    """Where the latest finalisation of a study stands."""

    round: AtLeastOne
    stage: Literal["confirm", "test", "done"]
    study: str
    """The name under which the runs of the latest stage stand in the dashboard: 'dtd@test-1'."""
    n_confirm_seeds: int
    n_test_seeds: int
    contenders: tuple[Contender, ...]
    """The default first, then by what the search saw, then averages of their weights."""
    winner: int | None
    """Its trial's number, the first of an average; None until the confirm stage is over."""
    unmade: tuple[Count, ...] = ()
    """The trials of an average that had won and could not be made with any seed of the test stage:
    a run of theirs failed, or weights were on a machine with a home folder of its own. The first
    recipe of the average is the winner in its place."""
    entries: tuple[Entry, ...]
    """The default first and the winner last; only one where the default itself won."""
    gain: Interval | None
    """Single crop, winner minus default, over the seeds that both have."""
    ten_crop_gain: Interval | None
    ensemble_gain: float | None
    runs: tuple[FinalRun, ...]
    readings: tuple[TestSetReading, ...]

    @property
    def winning(self) -> Entry | None:
        """Return the winner in the test stage; None before that."""
        return self.entries[-1] if self.entries else None
