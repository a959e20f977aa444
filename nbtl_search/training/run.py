"""The training loop: a recipe in, steps and epochs out.

The caller iterates, and stops iterating whenever it likes; every `Step` is a place where
`Run.state_dict` can be taken, and a run that loads it goes on as if it had never stopped.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nbtl_search.data.loader import Batch, EvalBatches, TrainBatches
from nbtl_search.data.prepared import Prepared
from nbtl_search.network.device import derive_seed, place
from nbtl_search.network.grouped import kinds_in_fp32
from nbtl_search.network.model import Network, build
from nbtl_search.source.first_classifier import start_classifier
from nbtl_search.source.teacher import SourceSignals, source_signals
from nbtl_search.spec import Epoch, Progress, Recipe, best_epoch
from nbtl_search.training import checkpoint
from nbtl_search.training.evaluation import Score, largest_weight, running_score
from nbtl_search.training.gradients import Gradient, finite
from nbtl_search.training.method_losses import Terms, penalty_of
from nbtl_search.training.optimiser import optimiser_of, rate_at, set_rates
from nbtl_search.transfer.dtnh import Dtnh, Gathered

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far a run is: inside the epoch (from 1), updates done, validation images scored."""

    epoch: int
    update: int
    n_updates: int
    n_validated: int = 0


class Run:
    """One training run: its network, optimiser, position and history."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        prepared: Prepared,
        home: Path,
        measuring: Progress | None = None,
    ) -> None:
        """Build everything from the recipe.

        Args:
            recipe: all settings.
            prepared: the images.
            home: below it weights are cached, and what is measured of the source network is kept.
            measuring: called with (done, all) while that is measured, which can take hours; what it
                raises ends the building.

        Raises:
            SpecError: the recipe does not fit the model or this machine.
            WeightsError: the weights cannot be had or do not fit.
            DataError: the data cannot be read.
        """
        train = recipe.train
        self.recipe = recipe
        self.data_digest = prepared.digest
        self.classes = prepared.classes
        self.placement = place(train)
        with self.placement.numerics():
            self.network = self._built(prepared, home, measuring)
            self._batches = self._train_batches(prepared)
            self._validation: EvalBatches | None = None
            if not self.trains_on_validation:
                self._validation = EvalBatches(
                    prepared,
                    "val",
                    format=self.network.image_format,
                    batch_size=train.batch_size,
                    device=self.placement.device,
                )
        self.n_updates = self._batches.n_updates
        self.optimiser = optimiser_of(recipe, self.network.layers)
        self.penalty = penalty_of(recipe, self.network)
        # Last: measuring attention may take hours, and whatever else does not fit is known by now.
        with self.placement.numerics():
            source = source_signals(
                recipe,
                self.network,
                prepared=prepared,
                home=home,
                measuring=measuring,
            )
        self.gradient = self._gradient(source)
        self.progress = checkpoint.EpochProgress()
        self.history: tuple[Epoch, ...] = ()

    def _built(self, prepared: Prepared, home: Path, measuring: Progress | None) -> Network:
        network = build(
            self.recipe,
            n_classes=len(prepared.classes),
            home=home,
            placement=self.placement,
            prepared=prepared,
        )
        if self.recipe.dials.head_start == "logistic":
            start_classifier(
                self.recipe, network, prepared=prepared, home=home, measuring=measuring
            )
        return network

    def _train_batches(self, prepared: Prepared) -> TrainBatches:
        train, placement = self.recipe.train, self.placement
        return TrainBatches(
            prepared,
            augment=self.recipe.augment.parts,
            format=self.network.image_format,
            batch_size=train.batch_size,
            seed=train.seed,
            device=placement.device,
            n_workers=placement.n_loaders if train.n_loaders is None else train.n_loaders,
            splits=self.recipe.data.learnt_splits,
        )

    def _gradient(self, source: SourceSignals) -> Gradient:
        train, dials, network = self.recipe.train, self.recipe.dials, self.network
        # DTNH projects what pulls to the source against the task: until then the two stay apart.
        gathers = isinstance(self.penalty, Dtnh) and bool(dials.distill or source.hooks)
        return Gradient(
            network.model,
            self.placement,
            micro_batch=min(train.micro_batch or train.batch_size, train.batch_size),
            terms=Terms(network.model, self.recipe, source),
            gathered=Gathered(network.layers.block_parameters) if gathers else None,
        )

    @property
    def precision(self) -> str:
        """Return the arithmetic by the name that reports give it."""
        mixed = self.placement.bf16 and kinds_in_fp32(self.network.model)
        return "bf16 and fp32" if mixed else self.placement.precision

    @property
    def position(self) -> tuple[int, int]:
        """Return (epochs finished, updates done in the epoch after them)."""
        return self.progress.epoch, self.progress.update

    @property
    def finished(self) -> bool:
        """Tell whether every epoch of the schedule is done."""
        return self.progress.epoch >= self.recipe.train.epochs

    @property
    def trains_on_validation(self) -> bool:
        """Tell whether the validation images are trained on, and so judge nothing."""
        return "val" in self.recipe.data.learnt_splits

    @property
    def n_validation(self) -> int:
        """Return how many images an epoch is validated on."""
        return 0 if self._validation is None else len(self._validation.labels)

    @property
    def best(self) -> Epoch | None:
        """Return the epoch with the highest validation top-1, the first of equals."""
        return best_epoch(self.history)

    def begin_epoch(self) -> None:
        """Put the network into training mode; also where an epoch is resumed half-way."""
        self.network.model.train()
        # After train(), which would wake the frozen blocks' batch norm: its running statistics
        # would drift from the pre-trained ones, though no weight of theirs learns.
        self.network.frozen.hold()

    def batches(self) -> Iterator[Batch]:
        """Return the epoch's batches from the current update on."""
        return self._working(self._batches.epoch(self.progress.epoch, self.progress.update))

    def update(self, batch: Batch) -> Step:
        """Do one update of the weights.

        Raises:
            DivergedError: the loss is not finite; the weights are as before.
            OutOfMemoryError: not even one image at a time fits.
            SpecError: the micro-batch is too small for batch norm.
        """
        # By place, not by what was drawn before: a resumed run has the dropout of one left alone.
        seed = derive_seed("update", self.recipe.train.seed, *self.position)
        with self._clock(), self.placement.numerics():
            self._set_rates()
            loss = self.gradient.compute(batch, seed=seed)
            # Once for a batch, after all its micro-batches: added to each, the pulls of L2 and
            # L2-SP would grow with their number. And before momentum, as decay of SGD is.
            self.regularise()
            self.optimiser.step()
        self.progress = self.progress.after(loss=loss, n_images=len(batch.targets))
        return self.step()

    def regularise(self) -> None:
        """Add the gradients of the penalty, projected where they may not work against the task.

        With AdamW the penalty takes a step of its own instead, unless it is to be projected.
        """
        if self.recipe.train.optimiser == "adamw" and not isinstance(self.penalty, Dtnh):
            groups = self.optimiser.param_groups
            self.penalty.step_({p: group["lr"] for group in groups for p in group["params"]})
            return
        gathered = self.gradient.gathered
        if isinstance(self.penalty, Dtnh) and gathered is not None:
            self.penalty.add_gradient_(gathered.gradients)
            gathered.clear()
        else:
            self.penalty.add_gradient_()

    def scores(self) -> Iterator[Score]:
        """Return the running score on the validation split; nothing where that is trained on."""
        if self._validation is None:
            return iter(())
        return self._working(
            running_score(
                self.network.model,
                self._validation,
                placement=self.placement,
                micro_batch=self.gradient.micro_batch,
            )
        )

    def step(self, *, n_validated: int = 0) -> Step:
        """Return where the run is."""
        return Step(
            epoch=self.progress.epoch + 1,
            update=self.progress.update,
            n_updates=self.n_updates,
            n_validated=n_validated,
        )

    def end_epoch(self, score: Score | None) -> Epoch:
        """Record the epoch, and move to the start of the next one.

        Raises:
            DivergedError: the validation loss is not finite; without validation, the weights.
        """
        if score is None:
            # Nothing else would see that the last update of all was one too far.
            finite(largest_weight(self.network.model), "largest weight")
        progress = self.progress
        # `finite` below raises before anything is recorded, so a diverged epoch is never reported.
        epoch = Epoch(
            epoch=progress.epoch + 1,
            train_loss=progress.loss_sum / progress.n_images,
            val_loss=None if score is None else finite(score.loss, "validation loss"),
            val_top1=None if score is None else score.top1,
            val_top5=None if score is None else score.top5,
            lr=rate_at(
                self.recipe.dials.lr_high,
                self.recipe,
                epoch=progress.epoch,
                update=0,
                n_updates=self.n_updates,
            ),
            n_images=progress.n_images,
            seconds=progress.seconds,
            micro_batch=self.gradient.micro_batch,
        )
        self.history = (*self.history, epoch)
        self.progress = checkpoint.EpochProgress(epoch=progress.epoch + 1)
        return epoch

    def state_dict(self) -> checkpoint.RunState:
        """Return all that a run needs to go on from here, but not what it starts from.

        The anchors of L2-SP are the pre-trained weights, not the current ones: the state holds
        their file's digest, and a run that loads it has made them from that file.
        """
        return checkpoint.capture(self)

    def load_state_dict(self, saved: checkpoint.RunState) -> None:
        """Go to where a state was taken.

        Raises:
            SpecError: it is of another recipe or version.
            WeightsError: the pre-trained weights are others now.
            DataError: the data are others now.
        """
        checkpoint.restore(self, saved)

    def _set_rates(self) -> None:
        epoch, update = self.position
        set_rates(self.optimiser, self.recipe, epoch=epoch, update=update, n_updates=self.n_updates)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.progress = self.progress.later(seconds=time.perf_counter() - started)

    def _working(self, items: Iterator[Item]) -> Iterator[Item]:
        """Draw the items under the run's numerics and on its clock; the caller has neither."""
        # Not `with` around a yield: the caller would run under our threads and switches, and its
        # pauses (checkpoints, a wait for the supervisor) would count as training.
        while True:
            with self._clock(), self.placement.numerics():
                item = next(items, None)
            if item is None:
                return
            yield item


def train(run: Run) -> Iterator[Step | Epoch]:
    """Train to the end of the schedule, from wherever the run is.

    Yields a Step after every update and every validation batch, and an Epoch at each epoch's
    end. The random state of the caller, its threads and its switches are as before at each yield.

    Raises:
        DivergedError: a loss is not finite.
        OutOfMemoryError: not even one image at a time fits.
    """
    while not run.finished:
        run.begin_epoch()
        for batch in run.batches():
            yield run.update(batch)
        score: Score | None = None
        for score in run.scores():
            yield run.step(n_validated=score.n_images)
        yield run.end_epoch(score)
