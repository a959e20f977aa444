"""Maintenance of a workspace: logs of workers, leftovers on the disk, backups of the database.

The arguments of the methods are explained at the functions of `nbtl_search.api`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbtl_search.errors import StudyNotFoundError
from nbtl_search.ledger import backup as backups
from nbtl_search.ledger.backup import Restored
from nbtl_search.study import store
from nbtl_search.worker import retention
from nbtl_search.worker.retention import Leftover
from nbtl_search.workspace.workspace import Workspace

_LINE_BYTES: Final = 1000  # more than most lines have
_FOLLOW_S: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line of a log, and the file it stands in."""

    file: Path
    text: str


@dataclass(frozen=True)
class Logs:
    """The logs that workers wrote below home."""

    workspace: Workspace

    def last(self, name: str, *, worker: str | None = None, n_lines: int = 20) -> list[LogLine]:
        """Return the last lines of each log of a study, the file written last at the end."""
        files = list(self._files(name, worker))
        if not files:
            folder = self.workspace.logs_folder(name)
            which = f" with {worker!r} in its name" if worker else ""
            message = (
                f"the study {name!r} must have a log{which} in {str(folder)!r}, got none; logs are "
                "on the machine, or the shared home, of its workers"
            )
            raise StudyNotFoundError(message)
        files.sort(key=lambda path: path.stat().st_mtime)
        return [line for path in files for line in _last(path, n_lines)]

    def follow(self, name: str, *, worker: str | None = None) -> Iterator[LogLine]:
        """Yield the lines that are added to a study's logs, without end; none of them is old."""
        offsets = {path: path.stat().st_size for path in self._files(name, None)}
        while True:
            for path in sorted(self._files(name, worker)):
                yield from _added(path, offsets)
            time.sleep(_FOLLOW_S)

    def _files(self, name: str, worker: str | None) -> Iterator[Path]:
        for path in self.workspace.logs_folder(name).rglob("*"):
            is_log = ".log" in path.name or path.suffix == ".out"
            if is_log and path.is_file() and (worker is None or worker in path.name):
                yield path


@dataclass(frozen=True)
class Leftovers:
    """Checkpoints and logs that nobody needs any more."""

    workspace: Workspace

    def remove(
        self, name: str | None = None, *, older_than_days: float = 30.0, dry_run: bool = False
    ) -> list[Leftover]:
        """Remove checkpoints of trials that ended, and old logs; return what was removed."""
        with self.workspace.open_database() as database:
            names = [name] if name else [summary.name for summary in store.names(database)]
            every = [
                one for each in names for one in (each, *store.names_of_final_runs(database, each))
            ]
            found = retention.leftovers(
                self.workspace.home,
                [store.open_study(database, each) for each in every],
                all_studies=name is None,
                logs_older_than_s=older_than_days * retention.DAY_S,
                now_s=time.time(),
            )
        if not dry_run:
            retention.remove(found)
        return found


@dataclass(frozen=True)
class Backups:
    """Backups of a workspace's database."""

    workspace: Workspace

    def write(self, target: Path, *, force: bool = False) -> int:
        """Write all studies into a file, while workers run; return its size in bytes."""
        with self.workspace.open_database() as database:
            return backups.backup(database, target.absolute(), force=force)

    def restore(self, source: Path, *, replace: bool = False) -> Restored:
        """Bring the database to the state of a backup; after any error it is as before."""
        # A database without tables, or with older ones, is what one restores into.
        with self.workspace.open_database(checked=False) as database:
            return backups.restore(database, source.absolute(), replace=replace)


def _last(path: Path, n_lines: int) -> list[LogLine]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LINE_BYTES * (n_lines + 1)))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [LogLine(file=path, text=line) for line in lines[-n_lines:]]


def _added(path: Path, offsets: dict[Path, int]) -> Iterator[LogLine]:
    """Yield the whole lines that were added since `offsets`, and note how far that is."""
    offset = offsets.get(path, 0)
    size = path.stat().st_size
    if size < offset:  # it was rotated: the file of this name is a new one
        offset = 0
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(size - offset)
    whole = content[: content.rfind(b"\n") + 1]  # the rest of a line is still being written
    offsets[path] = offset + len(whole)
    for line in whole.decode("utf-8", "replace").splitlines():
        yield LogLine(file=path, text=line)
