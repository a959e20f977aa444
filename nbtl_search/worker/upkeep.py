"""Which checkpoints stay on the disk, and whether it has room for another trial.

A trial that runs, waits or is paused keeps its checkpoints (the last two). One that ended keeps
none, but for the last one of the best complete trials, as many as the slot says. The weights of
final runs are kept elsewhere and never touched here.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from nbtl_search.study import records
from nbtl_search.study.store import Study
from nbtl_search.worker.slot import Slot

logger = logging.getLogger(__name__)

_GB: Final = 1e9


def checkpoints_of(study: Study, home: Path) -> Path:
    """Return the folder of a study's checkpoints: a study of the same name has another."""
    return home / "checkpoints" / folder_name(study)


def folder_name(study: Study) -> str:
    """Return the name of a study's folders below `checkpoints` and `finals`."""
    return f"{study.name}-{study.uid[:8]}"


@final
@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """The checkpoints of one study on the disk of one slot."""

    study: Study
    slot: Slot

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return checkpoints_of(self.study, self.slot.home)

    def sweep(self) -> None:
        """Remove what the rules do not keep; any number of workers may do so at once.

        What has ended is asked first and the disk looked at afterwards: a trial never begins
        again once it has ended, so nothing that lives can be met.
        """
        ended = records.ended(self.study.storage.engine, self.study.id)
        complete = [trial for trial in ended if trial.state == "complete"]
        complete.sort(key=lambda trial: -1.0 if trial.value is None else trial.value, reverse=True)
        kept = {str(trial.number) for trial in complete[: self.slot.keep_best]}
        over = {str(trial.number) for trial in ended}
        for folder in self.folder.glob("[0-9]*"):
            if folder.name in kept:
                for older in sorted(folder.glob("[0-9]*.ckpt"))[:-1]:
                    older.unlink(missing_ok=True)
            elif folder.name in over:
                shutil.rmtree(folder, ignore_errors=True)

    def lack(self) -> str | None:
        """Return why no trial should begin here now, or None where there is room."""
        reason = self._lack()
        if reason is not None:
            self.sweep()
            reason = self._lack()
        return reason

    def _lack(self) -> str | None:
        home, slot = self.slot.home, self.slot
        free_gb = shutil.disk_usage(home).free / _GB
        if free_gb < slot.free_gb:
            return f"{free_gb:.1f} GB are free in {home}, at least {slot.free_gb:g} are wanted"
        if slot.quota_gb is not None:
            used_gb = size_bytes(self.folder) / _GB
            if used_gb > slot.quota_gb:
                return f"checkpoints take {used_gb:.1f} GB, at most {slot.quota_gb:g} are allowed"
        return None


def size_bytes(folder: Path) -> int:
    """Return the size of all files below a folder, which others may change meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return size
