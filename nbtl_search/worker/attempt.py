"""How a trial ended, from what its trainer sent.

One attempt at a trial: from its lease until it ends, is given back, or is taken away.
"""

import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from nbtl_search.errors import FencedError, StorageLostError
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.ledger.lifecycle import FinalResult, Lease, Leases, Outcome
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Epoch, Recipe, best_epoch
from nbtl_search.study import pruning, sampling
from nbtl_search.study.store import Study
from nbtl_search.worker import protocol
from nbtl_search.worker.child import Child, ChildDiedError
from nbtl_search.worker.metrics import Metrics


def of_epochs(
    state: Literal["complete", "pruned"],
    epochs: Sequence[Epoch],
    *,
    cause: str | None = None,
    message: str | None = None,
) -> Outcome:
    """Return the end of a trial whose value is the best of these epochs."""
    best = best_epoch(epochs)
    return Outcome(
        state=state,
        value=None if best is None else best.val_top1,
        best_epoch=None if best is None else best.epoch,
        cause=cause,
        message=message,
    )


def of_scores(scores: protocol.Scores, folder: Path) -> FinalResult:
    """Return the result of a final run that left its weights in this folder."""
    return FinalResult(
        **scores.model_dump(),
        predictions=(folder / "predictions.npz").read_bytes(),
        host=socket.gethostname(),
        folder=str(folder),
    )


logger = logging.getLogger(__name__)

HaltReason = Literal["pruned", "preempted", "cancelled", "fenced"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Every interval of a worker, in seconds."""

    beat_s: float = 10.0
    lease_s: float = 60.0
    poll_s: float = 2.0
    halt_s: float = 7.0
    hang_s: float = 1800.0
    retry_s: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What a worker has at hand for all its trials."""

    study: Study
    leases: Leases
    ledger: Ledger
    child: Child
    rungs: tuple[int, ...]
    timing: Timing
    stopping: Callable[[], bool]
    beat: Callable[[str, int | None], None]
    metrics: Metrics


@final
class Attempt:
    """The attempt. A lost database is waited for while training goes on."""

    def __init__(
        self, lease: Lease, desk: Desk, *, checkpoints: Path, keep: Path | None = None
    ) -> None:
        self._lease = lease
        self._desk = desk
        self._checkpoints = checkpoints
        self._keep = keep
        self._recipe = Recipe.parse_json(lease.recipe_json)
        self._history: list[Epoch] = []
        self._n_sent = 0
        self._halting: HaltReason | None = None
        self._halt_by = float("inf")
        self._beat_at = 0.0
        self._retry_at = 0.0
        self._heard_at = time.monotonic()
        self.rss_mb: float | None = None
        self.disk_is_full = False
        self._over = False

    def run(self) -> None:
        """See the attempt through.

        Raises:
            ChildDiedError: the trainer died, or was killed here because it hung or would not
                halt; the ledger knows already.
        """
        order = protocol.Train(
            recipe=self._recipe,
            checkpoints=str(self._checkpoints),
            keep=None if self._keep is None else str(self._keep),
        )
        try:
            self._desk.child.send(order)
            while not self._over:
                self.step(time.monotonic())
        except ChildDiedError as death:
            self._child_died(str(death))
            raise

    def step(self, now: float) -> None:
        """Beat if it is time, look whether to stop, and handle the trainer's next message."""
        self._desk.metrics.turn()
        if now >= self._beat_at:
            self._beat_at = now + self._desk.timing.beat_s
            self._online(now, self._beat)
        if self._desk.stopping():
            self._halt("preempted", keep=True)
            self._halt_by = min(self._halt_by, now + self._desk.timing.halt_s)
        if now > self._halt_by or now - self._heard_at > self._desk.timing.hang_s:
            self._desk.child.kill()
            message = "the trainer gave no sign of life and was killed"
            raise ChildDiedError(message)
        report = self._desk.child.poll(min(0.25, self._desk.timing.beat_s))
        if report is not None:
            self._heard_at = time.monotonic()
            self._handle(report)

    def _handle(self, report: protocol.Report) -> None:
        match report:
            case protocol.Started(history=history):
                self._history = list(history)
                self._judge()
            case protocol.Trained(epoch=epoch):
                self._history.append(epoch)
                self._desk.metrics.epoch(seconds=epoch.seconds, n_images=epoch.n_images)
                self._judge()
                if self._halting is None:
                    self._desk.child.send(protocol.GoOn())
            case protocol.Warned(message=message):
                self._note("%s", message)
            case protocol.Ended(rss_mb=rss_mb, scores=scores):
                self.rss_mb = rss_mb
                self._complete(scores)
            case protocol.Halted(rss_mb=rss_mb):
                self.rss_mb = rss_mb
                self._halted()
            case protocol.Failed(cause=cause, message=message):
                self._failed(cause, message)

    def _note(self, text: str, *values: object) -> None:
        logger.warning(text, *values, extra={"action": "train", "trial": self._lease.number})

    # -- with the database ------------------------------------------------------------------

    def _beat(self) -> None:
        wanted = self._desk.leases.renew(self._lease)
        self._desk.beat("training", self._lease.number)
        if wanted != "run":
            self._halt("cancelled", keep=True)

    def _judge(self) -> None:
        """Record what was trained; at a rung, stop the trial if it is weak."""
        self._online(time.monotonic(), self._send_epochs)
        if not self._history or self._n_sent < len(self._history) or self._lease.protected:
            return
        rung = self._history[-1].epoch
        if rung in self._desk.rungs:
            self._online(time.monotonic(), lambda: self._compare(rung))

    def _send_epochs(self) -> None:
        unsent = self._history[self._n_sent :]
        self._desk.leases.record(self._lease, unsent)
        with storage_errors():
            sampling.report(
                self._desk.study,
                self._lease.trial_id,
                unsent,
                n_epochs=self._recipe.train.epochs,
                rungs=self._desk.rungs,
            )
        self._n_sent = len(self._history)

    def _compare(self, rung: int) -> None:
        values = self._desk.ledger.best_at(rung)
        mine = values[self._lease.trial_id]
        if not pruning.goes_on(mine, values.values(), pruning=self._desk.study.spec.search.pruning):
            self._halt("pruned", keep=False)

    def _online(self, now: float, action: Callable[[], None]) -> None:
        """Do it if the database answers; if not, leave it for a later beat."""
        if now < self._retry_at or self._halting == "fenced":
            return
        try:
            action()
        except StorageLostError as error:
            logger.warning("database lost: %s", error, extra={"action": "wait"})
            self._desk.study.storage.revive()
            self._retry_at = time.monotonic() + self._desk.timing.retry_s
        except FencedError as error:
            logger.warning("%s", error, extra={"action": "fenced", "trial": self._lease.number})
            self._halt("fenced", keep=False)

    def _insist(self, action: Callable[[], Any]) -> None:
        """Do it, waiting for the database as long as need be, unless told to stop meanwhile."""
        while True:
            try:
                action()
            except StorageLostError as error:
                logger.warning("database lost: %s", error, extra={"action": "wait"})
                if self._desk.stopping():
                    return
                self._desk.metrics.turn()
                self._desk.study.storage.revive()
                time.sleep(self._desk.timing.retry_s)
            except FencedError as error:
                logger.warning("%s", error, extra={"action": "fenced"})
                return
            else:
                return

    # -- ending -----------------------------------------------------------------------------

    def _halt(self, reason: HaltReason, *, keep: bool) -> None:
        if self._halting is not None:
            return
        self._halting = reason
        self._desk.child.send(protocol.Halt(keep=keep))

    def _halted(self) -> None:
        match self._halting:
            case "pruned":
                self._finish("pruned")
            case "preempted" | "cancelled":
                self._give_back(self._halting)
            case _:
                self._over = True

    def _complete(self, scores: protocol.Scores | None) -> None:
        """End a trial that ran to its end; what its value is depends on the stage.

        The search takes the best epoch. The first stage of a finalisation takes the last, which
        is what the second will have: there no validation images are left to choose one by.
        """
        match self._desk.study.stage:
            case None:
                self._finish("complete")
            case "confirm":
                self._end(of_epochs("complete", self._history[-1:]))
            case "test":
                assert scores is not None, "the trainer was told where to keep them"  # noqa: S101
                assert self._keep is not None  # noqa: S101
                result = of_scores(scores, self._keep)
                self._end(Outcome(state="complete", value=scores.top1), result=result)

    def _finish(
        self,
        state: Literal["complete", "pruned"],
        *,
        cause: str | None = None,
        message: str | None = None,
    ) -> None:
        self._end(of_epochs(state, self._history, cause=cause, message=message))

    def _end(self, outcome: Outcome, *, result: FinalResult | None = None) -> None:
        self._over = True
        if self._halting == "fenced":
            return
        self._desk.metrics.trials.labels(end=outcome.cause or outcome.state).inc()

        def end() -> None:
            self._send_epochs()
            self._desk.leases.finish(self._lease, outcome, result=result)

        self._insist(end)

    def _give_back(self, cause: str, message: str = "") -> None:
        self._over = True
        if self._halting == "fenced":
            return
        self._desk.metrics.trials.labels(end=cause).inc()
        leases = self._desk.leases
        self._insist(lambda: leases.release(self._lease, cause=cause, message=message))

    def _failed(self, cause: str, message: str) -> None:
        if cause in {"diverged", "oom"}:
            self._finish("pruned", cause=cause, message=message)
            return
        self._over = True
        if cause == "disk":  # no fault of the trial: it waits until there is room
            self._note("%s", message)
            self.disk_is_full = True
            self._give_back(cause, message)
            return
        if self._halting != "fenced":
            self._insist(
                lambda: self._desk.leases.fail_attempt(self._lease, cause=cause, message=message)
            )

    def _child_died(self, message: str) -> None:
        """Give a preempted trial back; count any other death as a failure of the machine."""
        logger.warning("%s", message, extra={"action": "died", "trial": self._lease.number})
        if self._halting in {"preempted", "cancelled"}:
            self._give_back(self._halting)
        else:
            self._failed("infra", message)
