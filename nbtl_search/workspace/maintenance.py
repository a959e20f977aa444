"""Remove what nobody needs any more, and read what workers wrote.

Back the database up, and bring a backup back.

Tell people what became of a study.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nbtl_search.errors import NbtlError, StorageLostError, StudyNotFoundError
from nbtl_search.ledger import backup as backups
from nbtl_search.ledger.backup import Restored
from nbtl_search.study import notifications, store
from nbtl_search.study.notifications import Notice
from nbtl_search.study.store import Study
from nbtl_search.worker import retention
from nbtl_search.worker.retention import Leftover
from nbtl_search.workspace.workspace import default_home, opened, opened_study


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line of a log, and the file it stands in."""

    file: Path
    text: str


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
        home: see above.
        storage: see above.

    Raises:
        StudyNotFoundError: no such study.
        StorageError: the database refuses: without it nobody knows what has ended.
    """
    home = home or default_home()
    with opened(storage, home) as database:
        names = [name] if name else [summary.name for summary in store.names(database)]
        every = [
            one for each in names for one in (each, *store.names_of_final_runs(database, each))
        ]
        found = retention.leftovers(
            home,
            [store.open_study(database, each) for each in every],
            all_studies=name is None,
            logs_older_than_s=older_than_days * retention.DAY_S,
            now_s=time.time(),
        )
    if not dry_run:
        retention.remove(found)
    return found


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
        home: see above.

    Raises:
        StudyNotFoundError: no worker of such a study wrote here.
    """
    folder = logs_folder(name, home=home)
    files = [path for path in folder.rglob("*") if path.is_file() and _is_log(path)]
    if worker is not None:
        files = [path for path in files if worker in path.name]
    if not files:
        which = f" with {worker!r} in its name" if worker else ""
        message = (
            f"the study {name!r} must have a log{which} in {str(folder)!r}, got none; logs are on "
            "the machine, or the shared home, of its workers"
        )
        raise StudyNotFoundError(message)
    files.sort(key=lambda path: path.stat().st_mtime)
    return [line for path in files for line in _last(path, n_lines)]


def logs_folder(name: str, *, home: Path | None = None) -> Path:
    """Return the folder of a study's logs."""
    return (home or default_home()) / "logs" / name


def follow(name: str, *, worker: str | None = None, home: Path | None = None) -> Iterator[LogLine]:
    """Yield the lines that are added to a study's logs, without end; None of them is old."""
    folder = logs_folder(name, home=home)
    places = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    while True:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and _is_log(path) and (worker is None or worker in path.name):
                yield from _added(path, places)
        time.sleep(0.5)


def _is_log(path: Path) -> bool:
    return ".log" in path.name or path.suffix == ".out"


def _last(path: Path, n_lines: int) -> list[LogLine]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1000 * n_lines - 1000))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [LogLine(file=path, text=line) for line in lines[-n_lines:]]


def _added(path: Path, places: dict[Path, int]) -> Iterator[LogLine]:
    """Yield the whole lines that were added since `places`, and note how far that is."""
    place = places.get(path, 0)
    size = path.stat().st_size
    if size < place:  # rotated
        place = 0
    with path.open("rb") as file:
        file.seek(place)
        content = file.read(size - place)
    whole = content[: content.rfind(b"\n") + 1]
    places[path] = place + len(whole)
    for line in whole.decode("utf-8", "replace").splitlines():
        yield LogLine(file=path, text=line)


def backup(
    target: Path, *, force: bool = False, home: Path | None = None, storage: str | None = None
) -> int:
    """Write all studies into a file, while workers run; return its size in bytes.

    Raises:
        StorageError: the file exists or cannot be written, or the database refuses.
    """
    with opened(storage, home or default_home()) as database:
        return backups.backup(database, target.absolute(), force=force)


def restore(
    source: Path, *, replace: bool = False, home: Path | None = None, storage: str | None = None
) -> Restored:
    """Bring the database to the state of a backup; after any error it is as before.

    Raises:
        SchemaError: the backup is of a newer nbtl-search.
        StorageError: it is no backup, or there are studies and `replace` is False.
    """
    with opened(storage, home or default_home(), checked=False) as database:
        return backups.restore(database, source.absolute(), replace=replace)


logger = logging.getLogger(__name__)


def tell_test(file: Path) -> None:
    """Send a message that says that messages arrive.

    Raises:
        SpecError: the file is not valid.
        NbtlError: the message was not taken.
    """
    settings = notifications.read_settings(file)
    notifications.send(settings, {"event": "test", "text": "nbtl-search can reach you", **_stamp()})


def tell_once(study: Study, settings: notifications.WebhookSettings) -> list[Notice]:
    """Tell what is due and was not told; return what was told. Failures are tried again later.

    Raises:
        StorageLostError: the database does not answer.
    """
    told = []
    for notice in notifications.due(study):
        if notice.event not in settings.events or not notifications.claim(study, notice):
            continue
        message = {
            "event": notice.event,
            "study": notice.study,
            "subject": notice.subject,
            "text": notice.text,
            "details": notice.details,
            **_stamp(f"{study.uid}/{notice.event}/{notice.subject}"),
        }
        try:
            notifications.send(settings, message)
        except NbtlError as error:
            logger.warning("%s", error, extra={"action": "notify"})
            continue
        notifications.mark_sent(study, notice)
        told.append(notice)
    return told


def notify(
    name: str,
    file: Path,
    *,
    every_s: float | None = None,
    home: Path | None = None,
    storage: str | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_told: Callable[[Notice], None] = lambda _: None,
) -> None:
    """Tell what became of a study, once or until it is told that it has finished.

    Args:
        name: of the study.
        file: the webhook's settings, see `launchers.webhook`.
        every_s: look again after so long; None to look once.
        home: see above.
        storage: see above.
        stopping: asked between looks.
        on_told: called with each notice that was delivered.

    Raises:
        SpecError: the file is not valid.
        StudyNotFoundError: no such study.
    """
    settings = notifications.read_settings(file)
    with opened_study(name, storage, home or default_home()) as study:
        while True:
            over = False
            try:
                for notice in tell_once(study, settings):
                    on_told(notice)
                over = _is_over(study, settings)
            except StorageLostError as error:
                logger.warning("%s", error, extra={"action": "notify"})
            if every_s is None or stopping() or over:
                return
            time.sleep(every_s)


def _is_over(study: Study, settings: notifications.WebhookSettings) -> bool:
    """Tell whether the study has finished and that was told, by whomever, or need not be."""
    ends = [notice for notice in notifications.due(study) if notice.event == "finished"]
    return any(
        "finished" not in settings.events or notifications.was_sent(study, notice)
        for notice in ends
    )


def _stamp(identity: str | None = None) -> dict[str, str]:
    """Return when, and an id by which a message that comes twice is known."""
    space = uuid.NAMESPACE_URL
    known = uuid.uuid4() if identity is None else uuid.uuid5(space, identity)
    return {"id": str(known), "at": datetime.now(UTC).isoformat()}
