"""Remove what nobody needs any more, and read what workers wrote."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened
from nbtl_search.errors import StudyNotFoundError
from nbtl_search.study import store
from nbtl_search.study.names import names_of_final_runs
from nbtl_search.worker import cleaning
from nbtl_search.worker.cleaning import Leftover


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
        every = [one for each in names for one in (each, *names_of_final_runs(database, each))]
        found = cleaning.leftovers(
            home,
            [store.open_study(database, each) for each in every],
            all_studies=name is None,
            logs_older_than_s=older_than_days * cleaning.DAY_S,
            now_s=time.time(),
        )
    if not dry_run:
        cleaning.remove(found)
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
