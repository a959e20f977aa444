"""Demo search: a whole study of procedural textures, and what it found, in a few minutes.

It uses a `Workspace` and nothing else. Everything it makes can be made again, or gone on with: the
study stands in the database, and its runs from random weights keep checkpoints.
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

from nbtl_search.errors import SchemaError, StudyExistsError, StudyNotFoundError
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.reports.prose import describe_recipe
from nbtl_search.reports.terminal.finals import render
from nbtl_search.spec import Dials, Facts, Progress, Recipe, StudySpec
from nbtl_search.spec.verdict import Verdict
from nbtl_search.study.store import Study
from nbtl_search.workspace.workspace import Workspace

STUDY: Final = "demo"
# From random weights a network wants other rates than in fine-tuning: this is the best of three
# (benchmarks/README.md). If there are several, the best counts.
RANDOM_RATES: Final = (0.03,)
# Of the final runs: few, since all has to fit into six minutes. A study of one's own has four each.
CANDIDATES: Final = 1
CONFIRM_SEEDS: Final = 2
TEST_SEEDS: Final = 2


@dataclass(frozen=True, kw_only=True)
class RandomRun:
    """The best epoch of a run from random weights, with one rate for all layers."""

    lr: float
    val_top1: float


@dataclass(frozen=True, kw_only=True)
class Findings:
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
    workspace: Workspace, *, trials: int | None, fresh: bool, progress: Progress | None = None
) -> StudySpec:
    """Make the demo's study, the shipped one for textures; where it is there, return it.

    Args:
        workspace: where it is made.
        trials: how many in all; None for the study's own number. It changes no study that exists.
        fresh: delete what an earlier demo has left first.
        progress: of the drawing of the images.

    Raises:
        StudyExistsError: there is one of another version, and `fresh` is False.
        StorageError: the database refuses.
    """
    if fresh:
        with suppress(StudyNotFoundError, SchemaError):
            workspace.studies.delete(STUDY)
        shutil.rmtree(workspace.home / STUDY, ignore_errors=True)
    settings = [] if trials is None else [f"budget.n_trials={trials}"]
    try:
        return workspace.studies.create(
            "textures", name=STUDY, settings=settings, progress=progress
        )
    except StudyExistsError as error:
        message = (
            f"the study {STUDY!r} must be the one this version of the program makes, got another "
            "one; run: nbtl-search demo --fresh"
        )
        raise StudyExistsError(message) from error


def search(
    workspace: Workspace,
    *,
    workers: int,
    on_tick: Callable[[Study], None] | None = None,
) -> bool:
    """Run workers until the study is over; return False where they were stopped before.

    Raises:
        NbtlError: a worker refused to start, or kept dying.
    """
    report, _ = workspace.studies.status(STUDY)
    if report.state == "finished":
        return True
    if report.state in {"paused", "stopped"}:
        workspace.studies.steer(STUDY, "resume")
    workspace.workers.launch(STUDY, workers=workers, on_tick=on_tick)
    report, _ = workspace.studies.status(STUDY)
    return report.state == "finished"


def finalize(
    workspace: Workspace,
    *,
    workers: int,
    on_tick: Callable[[Study], None] | None = None,
) -> Verdict:
    """Run the best recipes and the default over further seeds, then read the test images once.

    Raises:
        NbtlError: a worker refused to start, or kept dying.
    """
    return workspace.results.finalize(
        STUDY,
        candidates=CANDIDATES,
        confirm_seeds=CONFIRM_SEEDS,
        test_seeds=TEST_SEEDS,
        workers=workers,
        on_tick=on_tick,
    )


def random_runs(
    workspace: Workspace, spec: StudySpec, *, progress: Progress
) -> Iterator[RandomRun]:
    """Train from random weights, with the study's images and epochs, at each of `RANDOM_RATES`.

    Args:
        workspace: where the study is.
        spec: of the study.
        progress: called with (epochs done, epochs in all).

    Raises:
        DivergedError: a loss is not finite.
    """
    n_epochs = spec.train.epochs
    for index, lr in enumerate(RANDOM_RATES):
        recipe = random_recipe(spec, lr=lr)
        best = 0.0
        # Kept, so that a demo that was interrupted does not train them again.
        checkpoints = _checkpoints(workspace, recipe)
        for epoch in workspace.models.train(recipe, checkpoints=checkpoints):
            best = max(best, epoch.val_top1 or 0.0)
            progress(index * n_epochs + epoch.epoch, len(RANDOM_RATES) * n_epochs)
        yield RandomRun(lr=lr, val_top1=best)


def random_recipe(spec: StudySpec, *, lr: float) -> Recipe:
    """Return the default recipe without the pre-trained weights, at another rate."""
    binary = spec.recipe(Dials(lr_high=lr, beta=5e-4))
    return binary.replace(model=spec.model.replace(weights="random"))


def _checkpoints(workspace: Workspace, recipe: Recipe) -> Path:
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
    return workspace.home / STUDY / f"random-weights-{digest[:12]}"


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
        "what the sampler makes of it. Trials pause half-way, and the best of them go on."
    )


def conclusion(found: Findings) -> RenderableType:
    """Show random weights against the usual practice against the best found."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column("top-1", justify="right", no_wrap=True)
    table.add_column("")
    for name, value, how in _lines(found):
        table.add_row(Text(name, style="bold"), f"{value:.2f} %", Text(how))
    remarks = map(Text, _remarks(found))
    return Group("", table, "", *remarks, "", render(found.verdict, name=STUDY))


def next_steps(options: str) -> str:
    """Say what to do now; `options` follow each command, where the home is not the usual one."""
    steps = (
        ("in a browser", "dashboard"),
        ("all trials", f"status {STUDY}"),
        ("a page about it", f"report {STUDY}"),
        ("the model", f"export {STUDY} -o model"),
        ("your own images", "create --dataset ./my-folder"),
        ("the demo again", "demo --fresh"),
        ("stop the database", "db stop"),
    )
    return "\n".join(f"{what:<19}nbtl-search {command}{options}" for what, command in steps)


def _lines(found: Findings) -> Iterator[tuple[str, float, str]]:
    best_run = max(found.random, key=lambda run: run.val_top1)
    yield "random weights", best_run.val_top1, f"no transfer; rate {best_run.lr:g}"
    recommended = recommend(found.trials, n_images=found.facts.n_val)
    n_blocks = found.facts.n_blocks
    for name, trial in (
        ("default binary", recommended.default),
        ("best found", recommended.best),
    ):
        value = recommended.value_of(trial)
        if trial is not None and value is not None:
            recipe = describe_recipe(trial.dials, n_blocks=n_blocks)
            yield name, value.mean, f"trial {trial.number}: {recipe}"


def _remarks(found: Findings) -> Iterator[str]:
    facts, spec = found.facts, found.spec
    recommended = recommend(found.trials, n_images=facts.n_val)
    yield (
        f"Validation accuracy after {spec.train.epochs} epochs on the same {facts.n_train} images. "
        f"One of {facts.n_val} validation images is {100 / facts.n_val:.2f} points."
    )
    if recommended.best is not None and recommended.best == recommended.default:
        yield "No recipe was better than the usual practice, which is the best found."
    if recommended.gain is not None:
        yield (
            f"Best against default: {recommended.gain.describe()}. Both are means over seeds, "
            "drawn towards that of all recipes, as the best of many runs is partly lucky."
        )
    n_pruned = sum(trial.state == "pruned" for trial in found.trials)
    yield f"Trials stopped early: {n_pruned} of {len(found.trials)}."
