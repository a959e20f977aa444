"""Run a study's workers on a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened_study
from nbtl_search.errors import StorageError
from nbtl_search.launchers import queue
from nbtl_search.study import embedded, jobs, pgdata
from nbtl_search.study.store import Study
from nbtl_search.worker.slot import PATIENCE_S

if TYPE_CHECKING:
    from nbtl_search.launchers.slurm import SlurmArray

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
    queue.require("sbatch")
    with opened_study(name, storage, home) as study:
        address = _address(study, storage, home, write=not dry_run)
        arguments = ["worker", name, "--home", str(home), "--wait-s", str(PATIENCE_S), *options]
        array = SlurmArray(
            settings=wanted,
            task=WorkerTask(
                arguments=arguments,
                environment={"NBTL_STORAGE": "", "NBTL_STORAGE_FILE": str(address)},
                cache=wanted.cache,
            ),
            name=queue.job_name(name, study.uid),
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
    found = queue.settled(array.name)
    n_before = sum(task.is_live for task in found)
    cancelled = queue.surplus(found, n=n)
    queue.cancel(cancelled)
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


def _address(study: Study, storage: str | None, home: Path, *, write: bool) -> Path:
    """Return the file by which workers on other nodes find the database.

    Raises:
        StorageError: the embedded database is not served.
    """
    if storage is None:
        served = embedded.served(home)
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
        pgdata.write(path, storage + "\n", mode=0o600)
    return path
