"""Attempt: one worker's turn at a trial, from its lease until it ends, is released, or is lost."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, final

from nbtl_search.errors import FencedError, StorageLostError
from nbtl_search.ledger.leases import Lease, Leases, TrialOutcome
from nbtl_search.ledger.ledger import INFEASIBLE
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Epoch, best_epoch
from nbtl_search.spec.verdict import FinalResult
from nbtl_search.study import sampling
from nbtl_search.study.store import Study
from nbtl_search.worker import protocol
from nbtl_search.worker.child import Child, ChildDiedError
from nbtl_search.worker.metrics import Metrics
from nbtl_search.worker.settings import Timing

logger = logging.getLogger(__name__)

HaltReason = Literal["preempted", "stopped", "cancelled", "fenced"]
"""This worker is to go; the study is paused or stopped; the trial is wanted no more; it is another
worker's."""

_POLL_S: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """What a worker has for each of its trials."""

    study: Study
    leases: Leases
    child: Child
    timing: Timing
    stopping: Callable[[], bool]
    """Whether this worker is to go."""
    show: Callable[[str, int | None], None]
    """Shows what the worker does, and at which trial, to `status`."""
    metrics: Metrics


class FinalFolders(TypedDict, total=False):
    """What a final run needs beyond other trials; see `Attempt`."""

    result_folder: Path | None
    members: Sequence[Path]


@final
class Attempt:
    """The attempt. A lost database is waited for while training goes on."""

    def __init__(
        self,
        lease: Lease,
        context: TrialContext,
        *,
        checkpoints: Path,
        result_folder: Path | None = None,
        members: Sequence[Path] = (),
    ) -> None:
        """Prepare.

        Args:
            lease: of the trial.
            context: what the worker has for each of its trials.
            checkpoints: folder of the trial's own.
            result_folder: where a final run leaves its weights.
            members: folders of the final runs whose weights this one averages; none if it trains.
        """
        self._lease = lease
        self._context = context
        self._checkpoints = checkpoints
        self._result_folder = result_folder
        self._members = members
        self._recipe = lease.recipe
        self._history: list[Epoch] = []
        self._n_recorded = 0
        self._n_repeated = 0
        self._halting: HaltReason | None = None
        self._halt_by = float("inf")
        self._heartbeat_at = 0.0
        self._retry_at = 0.0
        self._last_message_at = time.monotonic()
        self._is_over = False
        self.rss_mb: float | None = None
        self.disk_is_full = False

    def run(self) -> None:
        """See the attempt through.

        Raises:
            ChildDiedError: the trainer died, or was killed here because it hung or would not
                halt; the ledger knows already.
        """
        order = protocol.Train(
            recipe=self._recipe,
            checkpoints=str(self._checkpoints),
            until=self._lease.until,
            members=tuple(map(str, self._members)),
            result_folder=None if self._result_folder is None else str(self._result_folder),
            reads_test=self._context.study.stage == "test",
        )
        try:
            self._context.child.send(order)
            while not self._is_over:
                self.step(time.monotonic())
        except ChildDiedError as death:
            # The ledger first, the new trainer second: should this process die in between, the
            # death is counted and another worker can already have the trial.
            self._child_died(str(death))
            raise

    def step(self, now: float) -> None:
        """Renew the lease if it is time, look whether to stop, handle the next message."""
        self._context.metrics.tick()
        if now >= self._heartbeat_at:
            # Set before the try: a database that is away is not asked at every turn. The lease
            # comes before everything else that may block: what is recorded without it is refused.
            self._heartbeat_at = now + self._context.timing.heartbeat_s
            self._try_once(now, self._heartbeat)
        if self._context.stopping():
            self._halt("preempted", save=True)
            # The earliest deadline stays: this is passed at every turn until the trainer answers.
            self._halt_by = min(self._halt_by, now + self._context.timing.halt_s)
        if now > self._halt_by or now - self._last_message_at > self._context.timing.hang_s:
            self._context.child.kill()
            message = "the trainer sent no heartbeat and was killed"
            raise ChildDiedError(message)
        # Short: a signal only sets a flag and does not wake a read (PEP 475).
        report = self._context.child.poll(min(_POLL_S, self._context.timing.heartbeat_s))
        if report is not None:
            self._last_message_at = time.monotonic()
            self._handle(report)

    def _handle(self, report: protocol.Report) -> None:
        match report:
            case protocol.Started(history=history):
                # From the checkpoint. The worker before may have lost the database before it could
                # record, so all of it is recorded once more.
                self._history = list(history)
                self._try_once(time.monotonic(), self._record)
            case protocol.Trained(epoch=epoch):
                self._history.append(epoch)
                # Its checkpoint was lost, or lies on another machine.
                self._n_repeated += epoch.epoch <= self._lease.n_recorded
                self._context.metrics.epoch(seconds=epoch.seconds, n_images=epoch.n_images)
                self._try_once(time.monotonic(), self._record)
            case protocol.Warned(message=message):
                self._warn("%s", message)
            case protocol.Completed(rss_mb=rss_mb):
                self.rss_mb = rss_mb
                self._complete(report)
            case protocol.Paused(rss_mb=rss_mb):
                self.rss_mb = rss_mb
                self._pause()
            case protocol.Halted(rss_mb=rss_mb):
                self.rss_mb = rss_mb
                self._halted()
            case protocol.Failed(cause=cause, message=message):
                self._failed(cause, message)

    def _warn(self, text: str, *values: object) -> None:
        logger.warning(text, *values, extra={"action": "train", "trial": self._lease.number})

    # -- with the database ------------------------------------------------------------------

    def _heartbeat(self) -> None:
        # Renewed before it is shown: the lease decides who trains, the row in `status` nothing.
        wanted = self._context.leases.renew(self._lease)
        self._context.show("training", self._lease.number)
        if wanted == "cancel":
            self._halt("cancelled", save=False)
        elif wanted != "run":
            self._halt("stopped", save=True)

    def _record(self) -> None:
        unrecorded = self._history[self._n_recorded :]
        # The ledger first, since it checks the token: what a fenced attempt has trained must not
        # reach Optuna, whose tables know no token.
        self._context.leases.record(self._lease, unrecorded, n_repeated=self._n_repeated)
        with storage_errors():
            sampling.report(
                self._context.study,
                self._lease.trial_id,
                unrecorded,
                n_epochs=self._recipe.train.epochs,
                rungs=self._context.study.ladder.rungs,
            )
        # Only now: lost in between, both are written again, which neither minds.
        self._n_recorded = len(self._history)

    def _try_once(self, now: float, action: Callable[[], None]) -> None:
        """Do it if the database answers; if not, leave it for later, and train on meanwhile."""
        if now < self._retry_at or self._halting == "fenced":
            return
        try:
            action()
        except StorageLostError as error:
            logger.warning("database lost: %s", error, extra={"action": "wait"})
            self._context.study.storage.revive()
            self._retry_at = time.monotonic() + self._context.timing.retry_s
        except FencedError as error:
            logger.warning("%s", error, extra={"action": "fenced", "trial": self._lease.number})
            # Without a checkpoint: the folder is the other attempt's now.
            self._halt("fenced", save=False)

    def _try_until_done(self, action: Callable[[], Any]) -> None:
        """Do it, waiting for the database as long as need be, unless told to stop meanwhile."""
        while True:
            try:
                action()
            except StorageLostError as error:
                logger.warning("database lost: %s", error, extra={"action": "wait"})
                # Nothing is lost by going: the lease expires, and whoever takes the trial over
                # resumes it from its last epoch and ends it again.
                if self._context.stopping():
                    return
                self._context.metrics.tick()
                self._context.study.storage.revive()
                time.sleep(self._context.timing.retry_s)
            except FencedError as error:
                logger.warning("%s", error, extra={"action": "fenced"})
                return
            else:
                return

    # -- ending -----------------------------------------------------------------------------

    def _halt(self, reason: HaltReason, *, save: bool) -> None:
        # Once: the first reason decides what becomes of the trial. One that is fenced is never
        # released, since it belongs to another worker.
        if self._halting is not None:
            return
        self._halting = reason
        self._context.child.send(protocol.Halt(save=save))

    def _halted(self) -> None:
        match self._halting:
            case "preempted" | "stopped" | "cancelled":
                self._release(self._halting)
            case _:
                self._is_over = True

    def _complete(self, report: protocol.Completed) -> None:
        """End a trial that ran to its end; what its value is depends on the stage.

        The search takes the best epoch. The first stage of a finalisation takes the last, which
        is what the second will have: there no validation images are left to choose one by. So
        does an ablation: the best of many epochs is a little lucky.
        """
        result = report.result
        match self._context.study.stage:
            case None:
                self._finish("complete")
            case "confirm" if self._members:
                self._end(TrialOutcome(state="complete", value=report.val_top1))
            case "confirm" | "ablation":
                self._end(_outcome("complete", self._history[-1:]))
            case "test":
                assert result is not None, "the trainer was told where to leave it"  # noqa: S101
                self._end(TrialOutcome(state="complete", value=result.score.top1), result=result)

    def _finish(
        self,
        state: Literal["complete", "pruned"],
        *,
        cause: str | None = None,
        message: str | None = None,
    ) -> None:
        self._end(_outcome(state, self._history, cause=cause, message=message))

    def _end(self, outcome: TrialOutcome, *, result: FinalResult | None = None) -> None:
        self._is_over = True
        # A fenced attempt goes without a word: every write of its would be refused, and how the
        # trial ends is for its new holder to say and to count.
        if self._halting == "fenced":
            return
        self._context.metrics.trials.labels(end=outcome.cause or outcome.state).inc()
        # The database holds them too: a verdict is computed on any machine, while the folder may
        # be on a disk of this one.
        predictions = _predictions(result)

        def end() -> None:
            # The last epochs before the end: with the end the lease is gone, and they would be
            # refused. Both in one try, as an outage may leave any number of them.
            self._record()
            self._context.leases.finish(
                self._lease, outcome, result=result, predictions=predictions
            )

        self._try_until_done(end)

    def _pause(self) -> None:
        """Set the trial aside: what it was granted is trained."""
        self._is_over = True
        if self._halting == "fenced":
            return
        self._context.metrics.trials.labels(end="paused").inc()

        def pause() -> None:
            self._record()
            self._context.leases.pause(self._lease)

        self._try_until_done(pause)

    def _release(self, cause: str, message: str = "") -> None:
        """Give the trial back for any worker to go on with, now instead of at the lease's end.

        One that is to be cancelled ends with that, in the ledger.
        """
        self._is_over = True
        if self._halting == "fenced":
            return
        self._context.metrics.trials.labels(end=cause).inc()

        def release() -> None:
            # What is not recorded yet is in the checkpoint, unless the trial ends here.
            self._record()
            self._context.leases.release(self._lease, cause=cause, message=message)

        self._try_until_done(release)

    def _failed(self, cause: str, message: str) -> None:
        # The recipe is at fault. Pruned, not failed: the sampler ignores what failed, and would
        # propose the same point again.
        if cause in INFEASIBLE:
            self._finish("pruned", cause=cause, message=message)
            return
        self._is_over = True
        # The machine is at fault: the trial waits until there is room, and no failure is counted.
        if cause == "disk":
            self._warn("%s", message)
            self.disk_is_full = True
            self._release(cause, message)
            return
        if self._halting != "fenced":
            leases = self._context.leases
            self._try_until_done(
                lambda: leases.fail_attempt(self._lease, cause=cause, message=message)
            )

    def _child_died(self, message: str) -> None:
        """Release a trial that was to be released; count any other death as the machine's."""
        logger.warning("%s", message, extra={"action": "died", "trial": self._lease.number})
        # Killed here because it would not halt in time, or by whoever sent us SIGTERM: no fault of
        # the trial.
        if self._halting in {"preempted", "stopped", "cancelled"}:
            self._release(self._halting)
        else:
            self._failed("infra", message)


def _outcome(
    state: Literal["complete", "pruned"],
    epochs: Sequence[Epoch],
    *,
    cause: str | None = None,
    message: str | None = None,
) -> TrialOutcome:
    """Return the end of a trial whose value is the best of these epochs."""
    best = best_epoch(epochs)
    return TrialOutcome(
        state=state,
        value=None if best is None else best.val_top1,
        best_epoch=None if best is None else best.epoch,
        cause=cause,
        message=message,
    )


def _predictions(result: FinalResult | None) -> bytes:
    return b"" if result is None else Path(result.weights.folder, "predictions.npz").read_bytes()
