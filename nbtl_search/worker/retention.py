"""Retention of checkpoints and logs: what stays on the disk, and whether a new trial has room.

A trial that runs or waits keeps its checkpoints (the last two), one that is paused the last. One
that ended keeps none, but for the last one of the best complete trials, as many as the worker's
settings say. Where room is short, those of the least accurate paused trials go: promoted, they
would train again from the start. The weights of final runs are kept elsewhere: those of the test
stage are never touched here, those of the confirm stage go when the test stage has begun, as no
average is made of them any more. Workers apply this after each trial; `clean` finds what is left of
studies and workers that are gone (`leftovers`).
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from nbtl_search.ledger import records
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.study import stages
from nbtl_search.study.store import FINAL_MARK, Study
from nbtl_search.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

_GB: Final = 1e9
DAY_S: Final = 86_400.0


def checkpoints_of(study: Study, home: Path) -> Path:
    """Return the folder of a study's checkpoints: a study of the same name has another."""
    return home / "checkpoints" / folder_name(study)


def finals_of(study: Study, home: Path) -> Path:
    """Return the folder of the weights that the final runs of a stage leave."""
    return home / "finals" / folder_name(study)


def folder_name(study: Study) -> str:
    """Return the name of a study's folders below `checkpoints` and `finals`."""
    return f"{study.name}-{study.uid[:8]}"


@final
@dataclass(frozen=True, kw_only=True)
class Retention:
    """The rules for the checkpoints of one study, as one worker applies them."""

    study: Study
    settings: WorkerSettings

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return checkpoints_of(self.study, self.settings.home)

    def _best(self) -> list[int]:
        """Return the first trials of the best recipes, of which the last checkpoint is kept."""
        if self.settings.keep_best == 0:
            return []
        trials = records.trials(self.study.storage.engine, self.study.id)
        found = recommend(trials, n_images=self.study.facts.n_val)
        return [trial.number for trial, _ in found.ranked[: self.settings.keep_best]]

    def sweep(self) -> None:
        """Remove what the rules do not keep; any number of workers may do so at once."""
        if self.study.stage == "test":
            confirmed = stages.confirm_stage_of(self.study)
            shutil.rmtree(finals_of(confirmed, self.settings.home), ignore_errors=True)
        # The ledger first, the disk second: a trial never begins again once it has ended, so what
        # is found ended cannot have a checkpoint that lives. The other way round it could.
        ended = records.finished(self.study.storage.engine, self.study.id)
        paused = {str(number) for number in self._paused()}
        kept = {str(number) for number in self._best()}
        over = {str(trial.number) for trial in ended}
        for folder in self.folder.glob("[0-9]*"):
            if folder.name in kept | paused:
                for older in sorted(folder.glob("[0-9]*.ckpt"))[:-1]:
                    older.unlink(missing_ok=True)
            elif folder.name in over:
                shutil.rmtree(folder, ignore_errors=True)

    def shortage(self) -> str | None:
        """Return why no trial should begin here now, or None where there is room."""
        # Swept only where room is short: with enough of it, a worker would ask the database for
        # every ended trial before each new one.
        reason = self._shortage()
        if reason is not None:
            self.sweep()
            reason = self._shortage()
        for number in self._paused() if reason is not None else ():
            folder = self.folder / str(number)
            # Looked at again: it may be promoted by now, and train.
            if reason is not None and folder.exists() and number in self._paused():
                logger.warning("no room: %s goes, of a paused trial", folder)
                shutil.rmtree(folder, ignore_errors=True)
                reason = self._shortage()
        return reason

    def _paused(self) -> list[int]:
        return records.paused(self.study.storage.engine, self.study.id)

    def _shortage(self) -> str | None:
        home, settings = self.settings.home, self.settings
        free_gb = shutil.disk_usage(home).free / _GB
        if free_gb < settings.free_gb:
            return f"{free_gb:.1f} GB are free in {home}, at least {settings.free_gb:g} are wanted"
        if settings.quota_gb is not None:
            used_gb = size_bytes(self.folder) / _GB
            if used_gb > settings.quota_gb:
                return (
                    f"checkpoints take {used_gb:.1f} GB, at most {settings.quota_gb:g} are allowed"
                )
        return None


def size_bytes(folder: Path) -> int:
    """Return the size of all files below a folder, which others may change meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:  # a checkpoint's temporary name, or swept by another worker
            continue
    return size


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
    found = [*_of_ended(home, ended), *_of_confirmed(home, studies)]
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
    ended = records.finished(study.storage.engine, study.id)
    return {str(trial.number) for trial in ended}


def _workers(study: Study) -> bool:
    return bool(records.workers(study.storage.engine, study.id))


def _of_ended(home: Path, ended: dict[str, set[str]]) -> Iterator[Leftover]:
    for study, numbers in ended.items():
        for folder in sorted((home / "checkpoints" / study).glob("[0-9]*")):
            if folder.name in numbers:
                yield _leftover(folder, "checkpoints of a trial that ended")


def _of_confirmed(home: Path, studies: Sequence[Study]) -> Iterator[Leftover]:
    names = {study.name for study in studies}
    for stage in studies:
        if stage.stage != "confirm":
            continue
        search, _, number = stage.name.partition(f"{FINAL_MARK}confirm-")
        later = {
            f"{search}{FINAL_MARK}test-{number}",
            f"{search}{FINAL_MARK}confirm-{int(number) + 1}",
        }
        folder = finals_of(stage, home)
        if later & names and folder.exists():
            yield _leftover(folder, "weights of a confirm stage that is over")


def _of_nobody(home: Path, *, known: set[str]) -> Iterator[Leftover]:
    for folder in sorted((home / "checkpoints").glob("*-*")):
        if folder.name not in known:
            yield _leftover(folder, "checkpoints of a study that is not in the database")
    for folder in sorted((home / "finals").glob(f"*{FINAL_MARK}confirm-*")):
        if folder.name not in known:
            yield _leftover(folder, "weights of a confirm stage that is not in the database")


def _old(folder: Path, pattern: str, why: str, before: float) -> Iterator[Leftover]:
    for path in sorted(folder.glob(pattern)):
        if path.is_file() and path.stat().st_mtime < before:
            yield _leftover(path, why)


def _leftover(path: Path, why: str) -> Leftover:
    n_bytes = size_bytes(path) if path.is_dir() else path.stat().st_size
    return Leftover(path=path, why=why, n_bytes=n_bytes)
