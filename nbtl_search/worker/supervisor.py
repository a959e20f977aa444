"""Supervisor: the process of a worker that knows the database, beside its trainer, and no torch."""

import logging
import os
import socket
import time
import uuid
from typing import Final, final

from nbtl_search import restart_policy
from nbtl_search.errors import NbtlError, StorageLostError
from nbtl_search.ledger import schema
from nbtl_search.ledger.leases import Lease, Leases
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.restart_policy import Restarts
from nbtl_search.spec import Dials
from nbtl_search.study import sampling, stages
from nbtl_search.study.store import Study
from nbtl_search.worker import protocol
from nbtl_search.worker.attempt import Attempt, FinalFolders, TrialContext
from nbtl_search.worker.child import Child, ChildDiedError
from nbtl_search.worker.metrics import Metrics
from nbtl_search.worker.retention import Retention, finals_of
from nbtl_search.worker.settings import Timing, WorkerSettings
from nbtl_search.worker.signals import Stop

logger = logging.getLogger(__name__)

_MAX_GROWTH: Final = 1.5
_MAX_GROWTH_MB: Final = 1024.0


@final
class Supervisor:
    """Take trials of a study, one after the other, until the study is over or told to stop."""

    def __init__(
        self, study: Study, *, settings: WorkerSettings, stop: Stop, timing: Timing
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._settings = settings
        self.metrics = Metrics(study=study.name, worker=self.name)
        self._stop = stop
        self._timing = timing
        self.switch_study(study)
        self._child: Child | None = None
        self._ready: protocol.Ready | None = None
        self._baseline_mb: float | None = None
        self._restarts = Restarts(restart_policy.TRAINER)

    def switch_study(self, study: Study) -> None:
        """Go on with the final runs of the study, which need the same trainer.

        They have the specification and the facts of the search: data and weights stay open.
        """
        self._study = study
        self._leases = Leases(
            study.storage.engine, study.id, ladder=study.ladder, lease_s=self._timing.lease_s
        )
        self._ledger = Ledger(study.storage.engine, study.id)
        self._retention = Retention(study=study, settings=self._settings)

    def run(self) -> None:
        """Work until the study is over, is stopped, or this process is told to stop.

        Raises:
            NbtlError: data or weights of the study cannot be had on this machine.
        """
        while not self._stop.requested and self.step():
            pass

    def close(self) -> None:
        """End the trainer, and say that this worker is gone."""
        self._replace_child()
        self._show("gone", None)

    def step(self) -> bool:
        """Train one trial, or wait a moment; return whether there may be more to do."""
        self.metrics.tick()
        try:
            return self._next()
        except StorageLostError as error:
            # Wherever it was lost: each change is one transaction, so that nothing is half done,
            # and a turn begins by looking at what is there.
            logger.warning("database lost: %s", error, extra={"action": "wait"})
            self._study.storage.revive()
            self._stop.wait(self._timing.retry_s)
            return True

    def _next(self) -> bool:
        # The trainer before the lease: a worker with other images or weights than the study's ends
        # here, and has taken no trial that others could train.
        if not self._open():
            return True  # the trainer died, or a stop was requested, which run() sees
        # Optuna before the ask: the sampler must know every trial that has ended, also those whose
        # worker died between the ledger's row and Optuna's.
        sampling.tell_ended(self._study)
        desired = self._ledger.desired()
        if desired == "stop":
            return False
        shortage = self._retention.shortage() if desired == "run" else None
        lease = self._acquire() if desired == "run" and shortage is None else None
        if lease is not None:
            self._train(lease)
            return True
        if shortage is not None:
            self._leases.end_if_spent()
        if desired == "run" and self._ledger.is_over():
            sampling.tell_ended(self._study)  # what was paused has ended with the search
            self._retention.sweep()
            return False
        if shortage is not None:
            logger.warning("no new trial: %s", shortage, extra={"action": "no_room"})
        self._show(
            "paused" if desired == "pause" else "idle" if shortage is None else "no room", None
        )
        self._stop.wait(self._timing.poll_s if shortage is None else self._timing.heartbeat_s)
        return True

    def _acquire(self) -> Lease | None:
        with storage_errors():
            schema.check(self._study.storage.engine)  # it may be upgraded while workers run

        # A trial that was interrupted before all others: its epochs are spent, and the study cannot
        # end without it.
        lease = self._leases.take_over(self.name)
        if lease is not None:
            return lease
        # Read before the grant what the sampler will look at: on a large study that takes a
        # newcomer seconds, and inside it all others would wait for them.
        with storage_errors():
            self._study.optuna.get_trials(deepcopy=False)
        return self._leases.grant(self.name, sampling.asking(self._study))

    def _train(self, lease: Lease) -> None:
        assert self._child is not None  # noqa: S101
        logger.info("training", extra={"action": "train", "trial": lease.number})
        context = TrialContext(
            study=self._study,
            leases=self._leases,
            child=self._child,
            timing=self._timing,
            stopping=lambda: self._stop.requested,
            show=self._show,
            metrics=self.metrics,
        )
        attempt = Attempt(
            lease,
            context,
            checkpoints=self._retention.folder / str(lease.number),
            **self._final(lease),
        )
        try:
            with self.metrics.in_progress.track_inprogress():
                attempt.run()
        except ChildDiedError:
            # At once, without a pause: it is the trial that is held back after failures, not the
            # worker, which may have better luck with another one.
            self.metrics.trainer_restarts.inc()
            self._replace_child()
        else:
            self.metrics.trainer(attempt.rss_mb)
            self._check_memory(attempt.rss_mb)
        if attempt.disk_is_full:
            # Wait before the next turn: this trial would be the first to be taken again.
            self._show("no room", None)
            self._stop.wait(self._timing.heartbeat_s)
        # Before the sweep, which the ledger alone decides: whoever asks next wants to know how this
        # trial ended, and removing checkpoints on a shared disk may take seconds.
        sampling.tell_ended(self._study)
        self._retention.sweep()

    def _final(self, lease: Lease) -> FinalFolders:
        """Return where a final run leaves its weights, and where those are that it averages."""
        if self._study.stage is None:
            return {}
        folder = finals_of(self._study, self._settings.home)
        task = stages.task_of(self._study, lease.number)
        return {
            "result_folder": folder / str(lease.number) if task.is_kept else None,
            "members": [folder / str(number) for number in task.members],
        }

    def _show(self, state: str, trial_number: int | None) -> None:
        """Show what this worker does; a lost database is no error, as nothing depends on it."""
        try:
            self._ledger.heartbeat(
                self.name,
                host=socket.gethostname(),
                pid=os.getpid(),
                device=self._ready.device if self._ready else "",
                state=state,
                trial_number=trial_number,
            )
        except StorageLostError:
            logger.debug("no database to show %s to", state)
            self.metrics.answered(well=False)
        else:
            self.metrics.answered(well=True)

    # -- the trainer ------------------------------------------------------------------------

    def _open(self) -> bool:
        """Have a trainer that has opened data and weights; return whether there is one.

        Raises:
            NbtlError: data or weights cannot be had, or are others than the study's.
        """
        if self._child is not None:
            return True
        self._show("starting", None)
        spec = self._study.spec
        log = self._settings.home / "logs" / self._study.name / f"{self.name}.log"
        child = Child(self._settings.trainer, log=log, n_threads=spec.train.n_threads)
        order = protocol.Open(
            recipe=spec.recipe(Dials()),
            facts=self._study.facts,
            home=str(self._settings.home),
            cache=None if self._settings.cache is None else str(self._settings.cache),
        )
        report = self._await_ready(child, order)
        if isinstance(report, protocol.Ready):
            self._child, self._ready = child, report
            return True
        child.kill()
        if isinstance(report, protocol.Refused):
            raise NbtlError(report.message)
        return False

    def _await_ready(
        self, child: Child, order: protocol.Open
    ) -> protocol.Ready | protocol.Refused | None:
        """Return the trainer's answer, or None if it died, hung, or a stop was requested.

        Raises:
            NbtlError: trainers keep dying here before they answer.
        """
        started = time.monotonic()
        deadline = started + self._timing.open_s
        try:
            child.send(order)
            while not self._stop.requested and time.monotonic() < deadline:
                self.metrics.tick()
                report = child.poll(0.25)
                if isinstance(report, protocol.Ready | protocol.Refused):
                    self._restarts.forgive()
                    return report
        except ChildDiedError as death:
            logger.warning("%s", death, extra={"action": "died"})
            # Only before it answers: a trainer that has opened the study and dies in a trial may
            # have died of the trial, which the ledger counts.
            if self._restarts.after_death(lived_s=time.monotonic() - started) is None:
                raise NbtlError(str(death)) from death
        return None

    def _check_memory(self, rss_mb: float | None) -> None:
        """Replace a trainer whose memory does not return to what its first trial left.

        Not to what it had before that: caches of the images and of the kernels stay on purpose.
        """
        if rss_mb is None:
            return
        if self._baseline_mb is None:
            self._baseline_mb = rss_mb
        elif rss_mb > max(self._baseline_mb * _MAX_GROWTH, self._baseline_mb + _MAX_GROWTH_MB):
            logger.info("replacing a trainer of %.0f MB", rss_mb, extra={"action": "replace"})
            self._replace_child()

    def _replace_child(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child, self._baseline_mb = None, None
