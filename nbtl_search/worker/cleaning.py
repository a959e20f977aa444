"""What is left on the disk of studies, and what of it nobody needs any more."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbtl_search.study import records
from nbtl_search.study.store import Study
from nbtl_search.worker.upkeep import folder_name, size_bytes

DAY_S: Final = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something that can go."""

    path: Path
    why: str
    n_bytes: int


def leftovers(
    home: Path,
    studies: Sequence[Study],
    *,
    all_studies: bool,
    logs_older_than_s: float,
    now_s: float,
) -> list[Leftover]:
    """Return what can be removed below a home.

    Only the ledger decides what has ended; what it says is read before the disk is looked at.

    Args:
        home: the folder.
        studies: whose leftovers are wanted, final runs included.
        all_studies: they are all there are, so that folders of others belong to deleted ones.
        logs_older_than_s: age from which logs of studies without live workers can go.
        now_s: seconds since 1970.

    Raises:
        StorageError: the database refuses.
    """
    ended = {folder_name(study): _ended(study) for study in studies}
    idle = [study.name for study in studies if not _workers(study)]
    found = [*_of_ended(home, ended)]
    if all_studies:
        found += _of_nobody(home, known=set(ended))
    for name in idle:
        found += _old(home / "logs" / name, "**/*", "an old log", now_s - logs_older_than_s)
    found += _old(home, "checkpoints/*/*/.*.tmp", "never finished", now_s - DAY_S)
    return [item for item in found if item.path.exists()]


def remove(items: Sequence[Leftover]) -> None:
    """Remove them; what is gone already is fine."""
    for item in items:
        if item.path.is_dir():
            shutil.rmtree(item.path, ignore_errors=True)
        else:
            item.path.unlink(missing_ok=True)


def _ended(study: Study) -> set[str]:
    ended = records.ended(study.storage.engine, study.id)
    return {str(trial.number) for trial in ended}


def _workers(study: Study) -> bool:
    return bool(records.workers(study.storage.engine, study.id))


def _of_ended(home: Path, ended: dict[str, set[str]]) -> Iterator[Leftover]:
    for study, numbers in ended.items():
        for folder in sorted((home / "checkpoints" / study).glob("[0-9]*")):
            if folder.name in numbers:
                yield _leftover(folder, "checkpoints of a trial that ended")


def _of_nobody(home: Path, *, known: set[str]) -> Iterator[Leftover]:
    for folder in sorted((home / "checkpoints").glob("*-*")):
        if folder.name not in known:
            yield _leftover(folder, "checkpoints of a study that is not in the database")


def _old(folder: Path, pattern: str, why: str, before: float) -> Iterator[Leftover]:
    for path in sorted(folder.glob(pattern)):
        if path.is_file() and path.stat().st_mtime < before:
            yield _leftover(path, why)


def _leftover(path: Path, why: str) -> Leftover:
    n_bytes = size_bytes(path) if path.is_dir() else path.stat().st_size
    return Leftover(path=path, why=why, n_bytes=n_bytes)
