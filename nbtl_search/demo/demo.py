"""The demo: a whole search on procedural textures, and what it found, in a few minutes.

It uses the verbs of the API and nothing else. Everything it makes can be made again, or gone on
with: the study stands in the database, and its runs from random weights keep checkpoints.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nbtl_search import api
from nbtl_search.errors import SchemaError, StudyExistsError, StudyNotFoundError
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.reports.comparison import best_of, default_of, gain_of
from nbtl_search.reports.prose import recipe_in_words
from nbtl_search.reports.terminal.finals import render
from nbtl_search.spec import Dials, Facts, Recipe, StudySpec
from nbtl_search.spec.verdict import Verdict
from nbtl_search.study.store import Study

STUDY: Final = "demo"
# From random weights a network wants other rates than in fine-tuning; the best of these counts.
RANDOM_RATES: Final = (0.03, 0.1)
# Of the final runs: few, since all has to fit into six minutes. A study of one's own has four each.
CONFIRM_SEEDS: Final = 2
TEST_SEEDS: Final = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class RandomRun:
    """The best epoch of a run from random weights, with one rate for all layers."""

    lr: float
    val_top1: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a demo has to show."""

    spec: StudySpec
    trials: Sequence[TrialRecord]
    random: Sequence[RandomRun]
    verdict: Verdict

    @property
    def facts(self) -> Facts:
        """Return what was measured of the data and weights."""
        assert self.spec.facts is not None, "create() fills them in"  # noqa: S101
        return self.spec.facts


def create(
    *,
    trials: int | None,
    fresh: bool,
    home: Path,
    storage: str | None,
    progress: Progress | None = None,
) -> StudySpec:
    """Make the demo's study, the shipped one for textures; where it is there, return it.

    Args:
        trials: how many in all; None for the study's own number. It changes no study that exists.
        fresh: delete what an earlier demo has left first.
        home: for images, checkpoints and the embedded database.
        storage: a PostgreSQL URL; None for the embedded one.
        progress: of the drawing of the images.

    Raises:
        StudyExistsError: there is one of another version, and `fresh` is False.
        StorageError: the database refuses.
    """
    if fresh:
        with suppress(StudyNotFoundError, SchemaError):
            api.delete(STUDY, home=home, storage=storage)
        shutil.rmtree(home / STUDY, ignore_errors=True)
    settings = [] if trials is None else [f"budget.n_trials={trials}"]
    try:
        return api.create(
            "textures",
            name=STUDY,
            settings=settings,
            home=home,
            storage=storage,
            progress=progress,
        )
    except StudyExistsError as error:
        message = (
            f"the study {STUDY!r} must be the one this version of the program makes, got another "
            "one; run: nbtl-search demo --fresh"
        )
        raise StudyExistsError(message) from error


def search(
    *,
    workers: int,
    home: Path,
    storage: str | None,
    on_tick: Callable[[Study], None] | None = None,
) -> bool:
    """Run workers until the study is over; return False where they were stopped before.

    Raises:
        NbtlError: a worker refused to start, or kept dying.
    """
    report, _ = api.status(STUDY, home=home, storage=storage)
    if report.state == "finished":
        return True
    if report.state in {"paused", "stopped"}:
        api.steer(STUDY, "resume", home=home, storage=storage)
    api.launch(STUDY, workers=workers, home=home, storage=storage, on_tick=on_tick)
    report, _ = api.status(STUDY, home=home, storage=storage)
    return report.state == "finished"


def finalize(
    *,
    workers: int,
    home: Path,
    storage: str | None,
    on_tick: Callable[[Study], None] | None = None,
) -> Verdict:
    """Run the best recipe and the default over further seeds, then read the test images once.

    Raises:
        NbtlError: a worker refused to start, or kept dying.
    """
    return api.finalize(
        STUDY,
        candidates=1,
        confirm_seeds=CONFIRM_SEEDS,
        test_seeds=TEST_SEEDS,
        workers=workers,
        home=home,
        storage=storage,
        on_tick=on_tick,
    )


def random_runs(spec: StudySpec, *, home: Path, progress: Progress) -> Iterator[RandomRun]:
    """Train from random weights, with the study's images and epochs, at each of `RANDOM_RATES`.

    Args:
        spec: of the study.
        home: see `create`.
        progress: called with (epochs done, epochs in all).

    Raises:
        DivergedError: a loss is not finite.
    """
    n_epochs = spec.train.epochs
    for index, lr in enumerate(RANDOM_RATES):
        recipe = random_recipe(spec, lr=lr)
        best = 0.0
        for epoch in api.train(recipe, home=home, checkpoints=_checkpoints(recipe, home)):
            best = max(best, epoch.val_top1 or 0.0)
            progress(index * n_epochs + epoch.epoch, len(RANDOM_RATES) * n_epochs)
        yield RandomRun(lr=lr, val_top1=best)


def random_recipe(spec: StudySpec, *, lr: float) -> Recipe:
    """Return the default recipe without the pre-trained weights, at another rate."""
    binary = spec.recipe(Dials(lr_high=lr, beta=5e-4))
    return binary.replace(model=spec.model.replace(weights="random"))


def _checkpoints(recipe: Recipe, home: Path) -> Path:
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
    return home / STUDY / f"random-weights-{digest[:12]}"


# -- what is shown --------------------------------------------------------------------------


def introduction(spec: StudySpec) -> RenderableType:
    """Say what is going to be searched."""
    facts = spec.facts
    assert facts is not None, "create() fills them in"  # noqa: S101
    return Text(
        f"{facts.n_classes} kinds of procedural textures, {facts.n_train} images to train and "
        f"{facts.n_val} to validate, {spec.data.image_px} pixels wide. {spec.model.name} "
        f"({facts.n_blocks} blocks and a classifier) was pre-trained on other textures and ships "
        f"with this program.\n{spec.budget.n_trials} trials of {spec.train.epochs} epochs: the "
        "usual practice first, then known recipes, then a spread over the search space, then "
        "what the sampler makes of it. Weak trials are stopped early."
    )


def conclusion(outcome: Outcome) -> RenderableType:
    """Show random weights against the usual practice against the best found."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column("top-1", justify="right", no_wrap=True)
    table.add_column("")
    for name, value, how in _lines(outcome):
        table.add_row(Text(name, style="bold"), f"{value:.2f} %", Text(how))
    remarks = map(Text, _remarks(outcome))
    return Group("", table, "", *remarks, "", render(outcome.verdict, name=STUDY))


def next_steps(options: str) -> str:
    """Say what to do now; `options` follow each command, where the home is not the usual one."""
    steps = (
        ("in a browser", "dashboard"),
        ("all trials", f"status {STUDY}"),
        ("a page about it", f"report {STUDY}"),
        ("the model", f"export {STUDY} -o model"),
        ("your own images", "create --dataset ./my-folder"),
        ("the demo anew", "demo --fresh"),
        ("stop the database", "db stop"),
    )
    return "\n".join(f"{what:<19}nbtl-search {command}{options}" for what, command in steps)


def _lines(outcome: Outcome) -> Iterator[tuple[str, float, str]]:
    lucky = max(outcome.random, key=lambda run: run.val_top1)
    rates = ", ".join(f"{run.lr:g}" for run in outcome.random)
    yield "random weights", lucky.val_top1, f"no transfer; rate {lucky.lr:g}, the best of {rates}"
    default, best = default_of(outcome.trials), best_of(outcome.trials)
    n_blocks = outcome.facts.n_blocks
    for name, trial in (("default binary", default), ("best found", best)):
        if trial is not None and trial.value is not None:
            words = f"trial {trial.number}: {recipe_in_words(trial.dials, n_blocks=n_blocks)}"
            yield name, trial.value, words


def _remarks(outcome: Outcome) -> Iterator[str]:
    facts, spec = outcome.facts, outcome.spec
    default, best = default_of(outcome.trials), best_of(outcome.trials)
    yield (
        f"Validation accuracy after {spec.train.epochs} epochs on the same {facts.n_train} images, "
        f"one run each. One of {facts.n_val} validation images is {100 / facts.n_val:.2f} points."
    )
    if default is not None and default == best:
        yield "No trial was better than the usual practice: its recipe is the best found."
    gain = gain_of(best, default, n_val=facts.n_val)
    if gain is not None and not gain.is_tie:
        yield (
            f"Best against default: {gain.words()}. The best of {len(outcome.trials)} was chosen "
            "on these very images, so part of the gain is luck."
        )
    elif gain is not None:
        yield f"Best against default: {gain.words()}: nothing says that one is better."
    n_pruned = sum(trial.state == "pruned" for trial in outcome.trials)
    yield f"Trials stopped early: {n_pruned} of {len(outcome.trials)}."
