"""Workers of a workspace's studies: run them on this machine or on a cluster, or be one.

The arguments of the methods are explained at the functions of `nbtl_search.api`.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Final

from nbtl_search.errors import StorageError
from nbtl_search.files.atomic import write_durably
from nbtl_search.launchers import local, slurm
from nbtl_search.ledger.ledger import Ledger, record_job
from nbtl_search.postgres import server
from nbtl_search.postgres.connection import wait_for
from nbtl_search.restart_policy import DATABASE_PATIENCE_S
from nbtl_search.study import work
from nbtl_search.study.store import Study
from nbtl_search.worker.metrics import MetricsServer
from nbtl_search.worker.settings import Timing, WorkerSettings
from nbtl_search.worker.signals import stop_on_signals
from nbtl_search.worker.supervisor import Supervisor
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.launchers.slurm import SlurmArray

CLUSTER: Final = "slurm"
# An `ask` among many workers may take that long. A worker that is silent for longer is stuck.
_STALLED_AFTER_S: Final = 120.0


@dataclass(frozen=True, kw_only=True)
class Queued:
    """The workers of a study in the cluster's queue, before and after `launch_on_slurm`."""

    n_before: int
    n_after: int
    job_id: str | None
    """Of what was submitted."""
    cancelled: tuple[str, ...]
    logs: Path
    script: str | None
    """The batch script, where it was only asked for."""


@dataclass(frozen=True)
class Workers:
    """The workers that train a workspace's studies."""

    workspace: Workspace

    def launch(
        self,
        name: str,
        *,
        workers: int | None = None,
        gpus: Sequence[str] | None = None,
        slots_per_gpu: int = 1,
        options: Sequence[str] = (),
        on_tick: Callable[[Study], None] | None = None,
    ) -> None:
        """Run workers on this machine until the study is over."""
        with self.workspace.open_study(name) as study, stop_on_signals() as stop:
            found = local.gpus() if gpus is None else list(gpus)
            n_slots = workers or local.default_slots(
                n_gpus=len(found), per_gpu=slots_per_gpu, n_threads=study.spec.train.n_threads
            )
            devices = [
                {"CUDA_VISIBLE_DEVICES": found[slot % len(found)]} if found else {}
                for slot in range(n_slots)
            ]
            with self._address() as address:
                local.LocalLaunch(
                    self._command(name, self.workspace.home, options),
                    environments=[device | address for device in devices],
                    logs=self.workspace.logs_folder(name),
                ).run(
                    stopping=lambda: stop.requested,
                    tick=lambda: on_tick(study) if on_tick else None,
                )

    def launch_on_slurm(
        self,
        name: str,
        settings: Path,
        *,
        workers: int | None = None,
        dry_run: bool = False,
        options: Sequence[str] = (),
    ) -> Queued:
        """Bring the number of the study's workers in the queue to `workers`."""
        from nbtl_search.launchers.slurm import SlurmArray, SlurmSettings
        from nbtl_search.launchers.task import WorkerTask
        from nbtl_search.spec import read_toml

        wanted = SlurmSettings.parse(read_toml(settings))
        # Tasks start in another folder, on another machine.
        shared = Workspace(self.workspace.home.resolve(), self.workspace.storage)
        slurm.require("sbatch")
        with shared.open_study(name) as study:
            address = _storage_file(study, shared, write=not dry_run)
            array = SlurmArray(
                settings=wanted,
                task=WorkerTask(
                    arguments=self._command(name, shared.home, options),
                    environment={"NBTL_STORAGE": "", "NBTL_STORAGE_FILE": str(address)},
                    cache=wanted.cache,
                ),
                name=slurm.job_name(name, study.uid),
                folder=shared.logs_folder(name) / CLUSTER,
            )
            n = wanted.workers if workers is None else workers
            if dry_run:
                return _dry(array, n)
            return _bring_to(array, n, study)

    def work(
        self,
        name: str,
        *,
        cache: Path | None = None,
        beat_s: float = 10.0,
        wait_s: float = 0.0,
        free_gb: float = 1.0,
        quota_gb: float | None = None,
        keep_best: int = 0,
        metrics_port: int | None = None,
    ) -> None:
        """Be one worker: train trials and other runs until all are over, or SIGTERM."""
        settings = WorkerSettings(
            home=self.workspace.home,
            cache=cache,
            free_gb=free_gb,
            quota_gb=quota_gb,
            keep_best=keep_best,
            metrics_port=metrics_port,
        )
        _work(self.workspace, name, settings, _timing(beat_s), wait_s=wait_s)

    @staticmethod
    def _command(name: str, home: Path, options: Sequence[str]) -> list[str]:
        return ["worker", name, "--home", str(home), "--wait-s", str(DATABASE_PATIENCE_S), *options]

    @contextmanager
    def _address(self) -> Iterator[dict[str, str]]:
        """Give the environment by which workers find the database: a file of this user's own.

        A password is then in no process's arguments or environment.
        """
        if self.workspace.storage is None:
            yield {"NBTL_STORAGE": "", "NBTL_STORAGE_FILE": ""}
            return
        with NamedTemporaryFile("w", prefix="nbtl-storage-", encoding="utf-8") as file:
            file.write(self.workspace.storage)
            file.flush()
            yield {"NBTL_STORAGE": "", "NBTL_STORAGE_FILE": file.name}


def _timing(beat_s: float) -> Timing:
    # Six: one or two heartbeats that a busy database delays must not cost a worker its trial.
    pause_s = min(2.0, beat_s)
    return Timing(heartbeat_s=beat_s, lease_s=6 * beat_s, poll_s=pause_s, retry_s=pause_s)


def _work(
    workspace: Workspace, name: str, settings: WorkerSettings, timing: Timing, *, wait_s: float
) -> None:
    answer_s = max(5.0, min(30.0, timing.lease_s / 2))  # a stall is noticed within a lease
    opening = partial(
        workspace.open_study,
        name,
        answer_s=answer_s,
        application=f"nbtl-worker {socket.gethostname()}-{os.getpid()}",
    )
    # Signals come first: SIGTERM while the database is still waited for ends with exit code 0, too.
    with stop_on_signals() as stop, ExitStack() as stack, suppress(_StoppedError):

        def pause(seconds: float) -> None:
            stop.wait(seconds)
            if stop.requested:
                raise _StoppedError

        study = wait_for(
            lambda: stack.enter_context(opening()),
            deadline=time.monotonic() + wait_s,
            sleep=pause,
        )
        supervisor = Supervisor(study, settings=settings, stop=stop, timing=timing)
        stack.callback(supervisor.close)
        _serve_metrics(supervisor, settings, stack)

        def next_stage() -> Study | None:
            supervisor.metrics.tick()  # it lives, also where the database does not answer
            return _stage(study)

        # One process serves the search and then its final runs: a new one would load torch again.
        while stage := wait_for(next_stage, deadline=_later(), sleep=pause):
            supervisor.switch_study(stage)
            supervisor.run()
            if stop.requested:
                break


def _serve_metrics(supervisor: Supervisor, settings: WorkerSettings, stack: ExitStack) -> None:
    if settings.metrics_port is not None:
        server = MetricsServer(
            supervisor.metrics, port=settings.metrics_port, stalled_after_s=_STALLED_AFTER_S
        )
        stack.enter_context(server)


def _stage(study: Study) -> Study | None:
    """Return what has work left: the search, else final runs or an ablation that is wanted."""
    ledger = Ledger(study.storage.engine, study.id)
    if ledger.goes_on():
        return study
    return work.next_stage(study)


def _later() -> float:
    return time.monotonic() + DATABASE_PATIENCE_S


class _StoppedError(Exception):
    """SIGTERM came while the database was waited for."""


def _dry(array: "SlurmArray", n: int) -> Queued:
    return Queued(
        n_before=0,
        n_after=n,
        job_id=None,
        cancelled=(),
        logs=array.folder,
        script=array.script(n) if n else "",
    )


def _bring_to(array: "SlurmArray", n: int, study: Study) -> Queued:
    found = slurm.settled(array.name)
    n_before = sum(task.is_live for task in found)
    cancelled = slurm.surplus(found, n=n)
    slurm.cancel(cancelled)
    job_id = None
    if n > n_before:
        # Recorded after it was submitted: whoever dies in between leaves a job that the queue knows
        # by its name, and the next call counts it. The other order would record jobs that are none.
        job_id = array.submit(n - n_before)
        record_job(
            study.storage.engine,
            study.id,
            job_id=job_id,
            cluster=CLUSTER,
            n_tasks=n - n_before,
            folder=array.folder,
        )
    return Queued(
        n_before=n_before,
        n_after=n,
        job_id=job_id,
        cancelled=tuple(cancelled),
        logs=array.folder,
        script=None,
    )


def _storage_file(study: Study, workspace: Workspace, *, write: bool) -> Path:
    """Return the file by which workers on other nodes find the database.

    Raises:
        StorageError: the embedded database is not served.
    """
    if workspace.storage is None:
        served = server.served(workspace.home)
        if served is None:
            message = (
                "workers on other nodes must reach the database, got the embedded one, which "
                "listens on a socket of this machine only; name a server in NBTL_STORAGE_FILE, or "
                "let this one listen: nbtl-search db serve --host ADDRESS"
            )
            raise StorageError(message)
        return served
    file = workspace.storage_file(study.uid)
    if write:
        # The URL may hold a password: it must not stand in the queue's batch script, which others
        # can read.
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(file, f"{workspace.storage}\n".encode(), mode=0o600)
    return file
