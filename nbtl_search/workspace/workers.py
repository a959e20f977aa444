"""Run a study's workers, or be one.

Run a study's workers on a cluster.
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
from nbtl_search.launchers import local, slurm
from nbtl_search.ledger import jobs
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.postgres import data_folder, server
from nbtl_search.postgres.connection import wait_for
from nbtl_search.restart_policy import DATABASE_PATIENCE_S
from nbtl_search.study import finals
from nbtl_search.study.store import Study
from nbtl_search.worker.metrics import MetricsServer
from nbtl_search.worker.settings import Timing, WorkerSettings
from nbtl_search.worker.signals import stop_on_signals
from nbtl_search.worker.supervisor import Supervisor
from nbtl_search.workspace.workspace import default_home, opened_study

if TYPE_CHECKING:
    from nbtl_search.launchers.slurm import SlurmArray

_STILL_S: Final = 120.0  # an ask among many workers may take that long; nothing else may


def launch(
    name: str,
    *,
    workers: int | None = None,
    gpus: Sequence[str] | None = None,
    slots_per_gpu: int = 1,
    home: Path | None = None,
    storage: str | None = None,
    options: Sequence[str] = (),
    on_tick: Callable[[Study], None] | None = None,
) -> None:
    """Run workers on this machine until the study is over: one per GPU, or as many as fit the CPU.

    Args:
        name: of the study.
        workers: how many; by default one per GPU, or one per core (see `launchers.local`).
        gpus: their ids; by default all visible ones.
        slots_per_gpu: how many workers share a GPU.
        home: see above.
        storage: see above.
        options: further options of `nbtl-search worker`.
        on_tick: called about once a second.

    Raises:
        StudyNotFoundError: no such study.
        NbtlError: a worker refused to start, or kept dying.
    """
    home = home or default_home()
    with opened_study(name, storage, home) as study, stop_on_signals() as stop:
        found = local.gpus() if gpus is None else list(gpus)
        n_threads = study.spec.train.n_threads or 1
        n_slots = workers or len(found) * slots_per_gpu or local.default_slots(n_threads=n_threads)
        devices = [
            {"CUDA_VISIBLE_DEVICES": found[slot % len(found)]} if found else {}
            for slot in range(n_slots)
        ]
        command = [
            "worker",
            name,
            "--home",
            str(home),
            "--wait-s",
            str(DATABASE_PATIENCE_S),
            *options,
        ]
        with _address(storage) as address:
            local.LocalLaunch(
                command,
                environments=[device | address for device in devices],
                logs=home / "logs" / name,
            ).run(
                stopping=lambda: stop.requested,
                tick=lambda: on_tick(study) if on_tick else None,
            )


@contextmanager
def _address(storage: str | None) -> Iterator[dict[str, str]]:
    """Give the environment by which workers find the database: a file only this user can read.

    A password is then in no process's arguments or environment.
    """
    if storage is None:
        yield {"NBTL_STORAGE": "", "NBTL_STORAGE_FILE": ""}
        return
    with NamedTemporaryFile("w", prefix="nbtl-storage-", encoding="utf-8") as file:
        file.write(storage)
        file.flush()
        yield {"NBTL_STORAGE": "", "NBTL_STORAGE_FILE": file.name}


def work(
    name: str,
    *,
    home: Path | None = None,
    storage: str | None = None,
    cache: Path | None = None,
    beat_s: float = 10.0,
    wait_s: float = 0.0,
    free_gb: float = 1.0,
    quota_gb: float | None = None,
    keep_best: int = 0,
    metrics_port: int | None = None,
) -> None:
    """Be one worker: train trials of the study and its final runs until all are over, or SIGTERM.

    Args:
        name: of the study.
        home: see above.
        storage: see above.
        cache: folder for decoded images, on a disk of this node; by default below home.
        beat_s: seconds between heartbeats; a trial is taken over after six without one.
        wait_s: how long to wait at the start for a database that does not answer.
        free_gb: take no new trial while the disk of home has less free space.
        quota_gb: take no new trial while the study's checkpoints take more.
        keep_best: of how many of the best trials the last checkpoint is kept.
        metrics_port: serve metrics on this port of loopback.

    Raises:
        StudyNotFoundError: no such study.
        NbtlError: data or weights of the study cannot be had on this machine.
    """
    settings = WorkerSettings(
        home=home or default_home(),
        cache=cache,
        free_gb=free_gb,
        quota_gb=quota_gb,
        keep_best=keep_best,
        metrics_port=metrics_port,
    )
    _work(name, storage, settings, _timing(beat_s), wait_s=wait_s)


def _timing(beat_s: float) -> Timing:
    pause_s = min(2.0, beat_s)
    return Timing(heartbeat_s=beat_s, lease_s=6 * beat_s, poll_s=pause_s, retry_s=pause_s)


def _work(
    name: str, storage: str | None, settings: WorkerSettings, timing: Timing, *, wait_s: float
) -> None:
    answer_s = max(5.0, min(30.0, timing.lease_s / 2))  # a stall is noticed within a lease
    opening = partial(
        opened_study,
        name,
        storage,
        settings.home,
        answer_s=answer_s,
        application=f"nbtl-worker {socket.gethostname()}-{os.getpid()}",
    )
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

        while stage := wait_for(next_stage, deadline=_later(), sleep=pause):
            supervisor.switch_study(stage)
            supervisor.run()
            if stop.requested:
                break


def _serve_metrics(supervisor: Supervisor, settings: WorkerSettings, stack: ExitStack) -> None:
    if settings.metrics_port is not None:
        server = MetricsServer(
            supervisor.metrics, port=settings.metrics_port, stalled_after_s=_STILL_S
        )
        stack.enter_context(server)


def _stage(study: Study) -> Study | None:
    """Return what has work left: the search, else its final runs where they are wanted."""
    ledger = Ledger(study.storage.engine, study.id)
    if ledger.desired() != "stop" and not ledger.is_over():
        return study
    return finals.next_stage(study)


def _later() -> float:
    return time.monotonic() + DATABASE_PATIENCE_S


class _StoppedError(Exception):
    """Told to stop while still waiting for the database."""


CLUSTER: Final = "slurm"


@dataclass(frozen=True, kw_only=True)
class Queued:
    """What `launch_on_slurm` did."""

    n_before: int
    n_after: int
    job_id: str | None
    """Of what was submitted."""
    cancelled: tuple[str, ...]
    logs: Path
    script: str | None
    """The batch script, where it was only asked for."""


def launch_on_slurm(
    name: str,
    settings: Path,
    *,
    workers: int | None = None,
    dry_run: bool = False,
    home: Path | None = None,
    storage: str | None = None,
    options: Sequence[str] = (),
) -> Queued:
    """Bring the number of the study's workers in the queue to `workers`.

    More are submitted as one array; too many are ended, waiting ones first; a running one writes
    a checkpoint and gives its trial back.

    Args:
        name: of the study.
        settings: a TOML file, see `workers/slurm.toml`.
        workers: how many are wanted in all; by default as the settings say.
        dry_run: return the batch script of all of them, submit and write nothing.
        home: folder on a file system that all nodes share.
        storage: URL of the database; by default the embedded one, if it is served.
        options: further options of `nbtl-search worker`.

    Raises:
        SpecError: the settings are not valid.
        StudyNotFoundError: no such study.
        StorageError: the nodes could not reach the database.
        NbtlError: there is no Slurm here, or it refuses.
    """
    from nbtl_search.launchers.slurm import SlurmArray, SlurmSettings
    from nbtl_search.launchers.task import WorkerTask
    from nbtl_search.spec import read_toml

    wanted = SlurmSettings.parse(read_toml(settings))
    home = (home or default_home()).resolve()
    slurm.require("sbatch")
    with opened_study(name, storage, home) as study:
        address = _storage_address(study, storage, home, write=not dry_run)
        arguments = [
            "worker",
            name,
            "--home",
            str(home),
            "--wait-s",
            str(DATABASE_PATIENCE_S),
            *options,
        ]
        array = SlurmArray(
            settings=wanted,
            task=WorkerTask(
                arguments=arguments,
                environment={"NBTL_STORAGE": "", "NBTL_STORAGE_FILE": str(address)},
                cache=wanted.cache,
            ),
            name=slurm.job_name(name, study.uid),
            folder=home / "logs" / name / CLUSTER,
        )
        n = wanted.workers if workers is None else workers
        if dry_run:
            return _dry(array, n)
        return _bring_to(array, n, study)


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
        job_id = array.submit(n - n_before)
        jobs.record(
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


def _storage_address(study: Study, storage: str | None, home: Path, *, write: bool) -> Path:
    """Return the file by which workers on other nodes find the database.

    Raises:
        StorageError: the embedded database is not served.
    """
    if storage is None:
        served = server.served(home)
        if served is None:
            message = (
                "workers on other nodes must reach the database, got the embedded one, which "
                "listens on a socket of this machine only; name a server in NBTL_STORAGE_FILE, or "
                "let this one listen: nbtl-search db serve --host ADDRESS"
            )
            raise StorageError(message)
        return served
    path = home / "storage" / study.uid[:8]
    if write:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        data_folder.write(path, storage + "\n", mode=0o600)
    return path
