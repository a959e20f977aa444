"""Trainer: a process that turns recipes into epochs, and lives as long as its supervisor.

It imports torch and never optuna. It ignores signals meant for the group of processes: what stops
it is a message, or the end of the connection, which means that its supervisor is gone.
"""

import errno
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Literal, final

import psutil

from nbtl_search.data.prepared import Prepared, prepare
from nbtl_search.errors import (
    DataError,
    DeviceError,
    InfeasibleError,
    MethodError,
    NbtlError,
    SpecError,
    TrialError,
    WeightsError,
)
from nbtl_search.network.allocator import give_back, keep_freed_memory
from nbtl_search.spec import Recipe
from nbtl_search.spec.verdict import FinalResult, FinalWeights
from nbtl_search.training import checkpoint
from nbtl_search.training.averaging import average_of, measure_batch_norm
from nbtl_search.training.final_run import ScoredImages, keep, read_kept, score_test
from nbtl_search.training.run import Run, Step, train
from nbtl_search.worker import protocol

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY_S: Final = 300.0
_HEARTBEAT_EVERY_S: Final = 1.0
_ORPHANED: Final = 70
_IGNORED_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@final
class Inbox:
    """The supervisor's orders, read by a thread that ends the process with the connection."""

    def __init__(self, connection: Connection) -> None:
        self._orders: queue.SimpleQueue[protocol.Order] = queue.SimpleQueue()
        self._connection = connection
        threading.Thread(target=self._read, daemon=True, name="inbox").start()

    def _read(self) -> None:
        try:
            while True:
                self._orders.put(protocol.receive_order(self._connection))
        except (EOFError, OSError, ValueError) as error:
            # The supervisor is gone, and with it the lease: another worker may already train this
            # trial. Or its words are those of another version, after an upgrade beneath it: then
            # waiting would be for ever. Not `sys.exit`, which only ends this thread.
            logger.warning("no more orders: %s", error, extra={"action": "leave"})
            os._exit(_ORPHANED)

    def wait(self) -> protocol.Order:
        """Return the next order."""
        return self._orders.get()

    def halt(self) -> protocol.Halt | None:
        """Return the order to halt, if one has come; never wait, as training goes on."""
        try:
            order = self._orders.get_nowait()
        except queue.Empty:
            return None
        return order if isinstance(order, protocol.Halt) else None


class _HaltedError(Exception):
    """The supervisor wants the trainer to leave what it is at."""


@final
class Trainer:
    """The state of the process: the open study and the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = Inbox(connection)
        self._prepared: Prepared | None = None
        self._home = Path()
        self._cache: Path | None = None
        self._heartbeat_at = 0.0

    def serve(self) -> None:
        """Carry out orders until the supervisor goes."""
        while True:
            order = self._inbox.wait()
            match order:
                case protocol.Open():
                    self._send(self._open(order))
                case protocol.Train():
                    self._send(self._train(order))
                case protocol.Halt():
                    # Too late: sent while that run was ending. Left in the queue, it would halt the
                    # next one.
                    continue

    def _send(self, report: protocol.Report) -> None:
        protocol.send(self._connection, report)

    def _open(self, order: protocol.Open) -> protocol.Ready | protocol.Refused:
        self._home = Path(order.home)
        self._cache = None if order.cache is None else Path(order.cache)
        try:
            self._prepared = prepare(order.recipe.data, home=self._home, cache=self._cache)
            run = Run(order.recipe, prepared=self._prepared, home=self._home)
            _check(order, run)
        except NbtlError as error:
            return protocol.Refused(message=str(error))
        return protocol.Ready(device=str(run.placement.device))

    def _train(
        self, order: protocol.Train
    ) -> protocol.Completed | protocol.Paused | protocol.Halted | protocol.Failed:
        assert self._prepared is not None, "Train comes after Open"  # noqa: S101
        cause: Literal["disk", "user_error", "infra"]
        try:
            return self._averaged(order) if order.members else self._trained(order)
        except _HaltedError:
            return protocol.Halted(rss_mb=_rss_mb())
        except TrialError as error:
            return protocol.Failed(cause=error.cause, message=str(error))
        except NbtlError as error:
            cause = "disk" if _is_of_full_disk(error) else "user_error"
            return protocol.Failed(cause=cause, message=str(error))
        except Exception as error:
            logger.exception("training failed", extra={"action": "train"})
            cause = "disk" if _is_of_full_disk(error) else "infra"
            return protocol.Failed(cause=cause, message=f"{type(error).__name__}: {error}")

    def _trained(self, order: protocol.Train) -> protocol.Completed | protocol.Paused:
        assert self._prepared is not None  # noqa: S101
        with _recipe_at_fault():
            run = Run(
                order.recipe, prepared=self._prepared, home=self._home, measuring=self._measuring
            )
        directory = Path(order.checkpoints)
        # Loaded before the start is reported: the report carries the epochs of the checkpoint,
        # some of which the ledger may lack.
        checkpoint.load_latest(directory, run)
        self._send(protocol.Started(history=run.history))
        if len(run.history) < order.until:
            with _recipe_at_fault():
                self._epochs(run, directory, until=order.until)
        if not run.finished:
            return protocol.Paused(rss_mb=_rss_mb())
        return protocol.Completed(rss_mb=_rss_mb(), result=self._kept(order, run))

    def _averaged(self, order: protocol.Train) -> protocol.Completed:
        assert self._prepared is not None  # noqa: S101
        members = [read_kept(Path(folder)) for folder in order.members]
        run = average_of(members, order.recipe, prepared=self._prepared, home=self._home)
        self._send(protocol.Started(history=()))
        for n_done in measure_batch_norm(run):
            self._measuring(n_done, run.n_updates)
        score = None
        for score in run.scores():
            self._measuring(score.n_images, run.n_validation)
        result = self._kept(order, run, averaged=[member.recipe for member in members])
        val_top1 = None if score is None else score.top1
        return protocol.Completed(rss_mb=_rss_mb(), result=result, val_top1=val_top1)

    def _kept(
        self, order: protocol.Train, run: Run, averaged: Sequence[Recipe] = ()
    ) -> FinalResult | None:
        """Leave the weights where they are wanted, and read the test images if that is."""
        if order.result_folder is None:
            return None
        folder = Path(order.result_folder)
        if order.reads_test:
            return self._final_result(run, folder, averaged)
        keep(run, folder, None, averaged=averaged)
        return None

    def _measuring(self, n_done: int, _n_all: int) -> None:
        """Send heartbeats while the source network is measured; leave if ordered to halt.

        What is measured is kept as it comes: who halts here goes on from there.
        """
        if self._inbox.halt() is not None:
            raise _HaltedError
        self._heartbeat(epoch=0, update=n_done)

    def _heartbeat(self, *, epoch: int, update: int) -> None:
        now = time.monotonic()
        # At most one a second: a small network makes hundreds of updates in that time, and each
        # message wakes the supervisor.
        if now - self._heartbeat_at > _HEARTBEAT_EVERY_S:
            self._send(protocol.Heartbeat(epoch=epoch, update=update))
            self._heartbeat_at = now

    def _epochs(self, run: Run, directory: Path, *, until: int) -> None:
        """Train to the end of this epoch.

        Raises:
            _HaltedError: ordered to halt; a checkpoint is written if that was ordered too.
        """
        saved_at = time.monotonic()
        for event in train(run):
            if isinstance(event, Step):
                self._heartbeat(epoch=event.epoch, update=event.update)
            else:
                # Saved before it is reported: killed in between, the trial has an epoch that the
                # ledger will be sent again. The other way round it would train that epoch twice.
                self._save(directory, run)
                saved_at = time.monotonic()
                self._send(protocol.Trained(epoch=event))
                if event.epoch == until:
                    return
            halt = self._inbox.halt()
            if halt is not None:
                if halt.save:
                    self._save(directory, run)
                raise _HaltedError
            if time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                self._save(directory, run)
                saved_at = time.monotonic()

    def _save(self, directory: Path, run: Run) -> None:
        """Write a checkpoint; where the disk does not take it, train on: only a resume is lost."""
        try:
            checkpoint.save(directory, run)
        except OSError as error:
            message = (
                f"no checkpoint in {directory}: {error.strerror or error}; training goes on, and "
                "would be resumed from the one before"
            )
            logger.warning("%s", message, extra={"action": "save_checkpoint"})
            self._send(protocol.Warned(message=message))

    def _final_result(self, run: Run, folder: Path, averaged: Sequence[Recipe]) -> FinalResult:
        """Read the test images, and keep weights and predictions.

        The last epoch is in a checkpoint: who halts here begins to read anew.

        Raises:
            _HaltedError: ordered to halt.
        """
        for event in score_test(run, home=self._home, cache=self._cache):
            if isinstance(event, ScoredImages):
                digest = keep(run, folder, event.predictions, averaged=averaged)
                weights = FinalWeights(host=socket.gethostname(), folder=str(folder), digest=digest)
                return FinalResult(score=event.score, weights=weights)
            if self._inbox.halt() is not None:
                raise _HaltedError
            self._heartbeat(epoch=len(run.history), update=event.n_done)
        message = "reading the test images must end with a result"
        raise AssertionError(message)


@contextmanager
def _recipe_at_fault() -> Iterator[None]:
    """Say of what is refused while a run is built or trained that no machine could train it.

    The study's own data, weights and settings were opened here before any trial: what the recipe
    changes is its dials. What a checkpoint says is not asked here, nor what a machine lacks.

    Raises:
        InfeasibleError: instead of the error that says what the recipe asks for in vain.
    """
    try:
        yield
    except DeviceError:
        raise
    except (SpecError, MethodError) as error:
        raise InfeasibleError(str(error)) from error


def _check(order: protocol.Open, run: Run) -> None:
    """Refuse data or weights other than those the study was created with."""
    facts, recipe = order.facts, order.recipe
    if run.data_digest != facts.data_digest:
        message = (
            f"the images of {recipe.data.dataset!r} here (digest {run.data_digest[:12]}) are not "
            f"those the study was created with ({facts.data_digest[:12]}); copy them anew"
        )
        raise DataError(message)
    digest = run.network.weights_digest
    if digest != facts.weights_digest:
        message = (
            f"the weights {recipe.model.weights!r} here (digest {digest[:12]}) are not those the "
            f"study was created with ({facts.weights_digest[:12]}); copy the file anew"
        )
        raise WeightsError(message)


def _is_of_full_disk(error: BaseException | None) -> bool:
    """Tell whether the error came of a full disk or quota, also through `raise ... from`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


def _rss_mb() -> float:
    """Return the memory in MB that the process keeps now that a trial is over."""
    give_back()
    return float(psutil.Process().memory_info().rss) / 2**20


def main() -> None:
    """Serve on the connection whose file descriptor is the first argument."""
    # Before anything else: a signal to the group in the first moments would end the process, and
    # the supervisor would take that for a death.
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    keep_freed_memory()
    Trainer(Connection(int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
