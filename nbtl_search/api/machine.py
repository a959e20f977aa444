"""Machine and database as functions: checks, costs, logs, backups, notifications.

Each function is a method of `Workspace`, for who needs no object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from nbtl_search.ledger.backup import Restored
    from nbtl_search.spec.machine import Check
    from nbtl_search.study.cost_estimate import CostEstimate
    from nbtl_search.study.notifications import Notification
    from nbtl_search.worker.retention import Leftover
    from nbtl_search.workspace.maintenance import LogLine


def doctor(
    name: str | None = None,
    *,
    workers: int = 8,
    home: Path | None = None,
    storage: str | None = None,
) -> list[Check]:
    """Return what was looked at: interpreter, devices, disk, database. Nothing is changed.

    Args:
        name: a study whose device, precision and weights are looked at as well.
        workers: how many are planned, against the server's limit of connections.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.

    Raises:
        StudyNotFoundError: no such study.
    """
    return Workspace(home, storage).machine.doctor(name, workers=workers)


def preflight(
    name: str,
    *,
    workers: int | None = None,
    slots_per_gpu: int = 1,
    home: Path | None = None,
    storage: str | None = None,
) -> CostEstimate:
    """Train a few batches of the default recipe; return what the study will cost here.

    Args:
        name: of the study.
        workers: how many there will be; by default as `launch` would start.
        slots_per_gpu: how many share a GPU.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.

    Raises:
        StudyNotFoundError: no such study.
        SpecError: the budget does not bring one trial to its first rung.
        NbtlError: data or weights cannot be had here.
    """
    return Workspace(home, storage).machine.preflight(
        name, workers=workers, slots_per_gpu=slots_per_gpu
    )


def packed(
    name: str, *, seconds: float = 10.0, home: Path | None = None, storage: str | None = None
) -> Iterator[tuple[int, float]]:
    """Yield images per second of 1, 2, ... trainings that share the first GPU (or the CPU).

    It ends where the memory holds no more, or where one more adds less than three per cent.

    Args:
        name: of the study.
        seconds: how long each number of them trains.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.

    Raises:
        StudyNotFoundError: no such study.
        NbtlError: data or weights cannot be had here.
    """
    return Workspace(home, storage).machine.packed(name, seconds=seconds)


def logs(
    name: str,
    *,
    worker: str | None = None,
    n_lines: int = 20,
    home: Path | None = None,
) -> list[LogLine]:
    """Return the last lines of each log of a study's workers, the file written last at the end.

    Args:
        name: of the study.
        worker: only files with this in their name: a worker, a slot, a job of the queue.
        n_lines: of each file.
        home: of the workspace; by default the user's data folder.

    Raises:
        StudyNotFoundError: no worker of such a study wrote here.
    """
    return Workspace(home).logs.last(name, worker=worker, n_lines=n_lines)


def follow(name: str, *, worker: str | None = None, home: Path | None = None) -> Iterator[LogLine]:
    """Yield the lines that are added to a study's logs, without end; none of them is old."""
    return Workspace(home).logs.follow(name, worker=worker)


def clean(
    name: str | None = None,
    *,
    older_than_days: float = 30.0,
    dry_run: bool = False,
    home: Path | None = None,
    storage: str | None = None,
) -> list[Leftover]:
    """Remove checkpoints of trials that ended, and old logs; return what was removed.

    Checkpoints of open trials, weights of final runs, decoded images and downloads stay.

    Args:
        name: of one study; by default all, and what deleted ones left.
        older_than_days: the age from which logs of studies without live workers go.
        dry_run: remove nothing.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.

    Raises:
        StudyNotFoundError: no such study.
        StorageError: the database refuses: without it nobody knows what has ended.
    """
    return Workspace(home, storage).leftovers.remove(
        name, older_than_days=older_than_days, dry_run=dry_run
    )


def backup(
    target: Path, *, force: bool = False, home: Path | None = None, storage: str | None = None
) -> int:
    """Write all studies into a file, while workers run; return its size in bytes.

    Raises:
        StorageError: the file exists or cannot be written, or the database refuses.
    """
    return Workspace(home, storage).backups.write(target, force=force)


def restore(
    source: Path, *, replace: bool = False, home: Path | None = None, storage: str | None = None
) -> Restored:
    """Bring the database to the state of a backup; after any error it is as before.

    Raises:
        SchemaError: the backup is of a newer nbtl-search.
        StorageError: it is no backup, or there are studies and `replace` is False.
    """
    return Workspace(home, storage).backups.restore(source, replace=replace)


def notify(
    name: str,
    file: Path,
    *,
    every_s: float | None = None,
    home: Path | None = None,
    storage: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_told: Callable[[Notification], None] = lambda _: None,
) -> None:
    """Send messages about a study: once, or until the one that says it has finished.

    Args:
        name: of the study.
        file: the webhook's settings, see `study.notifications.WebhookSettings`.
        every_s: look again after so long; None to look once.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        stopping: asked between looks.
        on_told: called with each notification that was delivered.

    Raises:
        SpecError: the file is not valid.
        StudyNotFoundError: no such study.
    """
    Workspace(home, storage).notifications.send(
        name, file, every_s=every_s, stopping=stopping, on_sent=on_told
    )


def best_slots(rates: Sequence[tuple[int, float]]) -> int:
    """Return the fewest slots that come within three per cent of the best throughput."""
    from nbtl_search.workspace import machine

    return machine.best_slots(rates)


def logs_folder(name: str, *, home: Path | None = None) -> Path:
    """Return the folder of a study's logs."""
    return Workspace(home).logs_folder(name)


def tell_test(file: Path) -> None:
    """Send a message that says that messages arrive.

    Raises:
        SpecError: the file is not valid.
        NbtlError: the message was not accepted.
    """
    from nbtl_search.workspace import notifications

    notifications.send_test(file)
