"""Work on the recipes that a search found: its final runs and its ablation, one at a time."""

from typing import Final, Literal

from nbtl_search.errors import SpecError
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.study import ablations, finals
from nbtl_search.study.store import Study

Verb = Literal["finalize", "ablate"]
_OPEN: Final = {"finalize": finals.open_stage, "ablate": ablations.open_stage}


def next_stage(study: Study) -> Study | None:
    """Return the stage that waits for workers, planned or opened where that is due.

    Returns:
        None where nothing is to be done, or it was told to stop.

    Raises:
        StudyNotFoundError: of a finalisation no candidate could be trained.
        StorageError: the database refuses.
    """
    return ablations.next_stage(study) or finals.next_stage(study)


def open_stage(study: Study) -> Study | None:
    """Return the stage whose runs have not all ended, rather than one that was told to stop."""
    found = [stage for find in _OPEN.values() if (stage := find(study)) is not None]
    return min(found, key=_is_stopped, default=None)


def check_alone(study: Study, verb: Verb) -> None:
    """Refuse to do one thing while the other is at work.

    Raises:
        SpecError: it is.
    """
    # Without a lock: two commands at the same moment would both begin, and workers would do one
    # after the other.
    for other, find in _OPEN.items():
        stage = None if other == verb else find(study)
        if stage is not None and not _is_stopped(stage):
            message = (
                f"{verb} begins when other runs have ended, and {stage.name!r} is at work; go on "
                f"with: nbtl-search {other} {study.name}, or end it: nbtl-search stop {study.name}"
            )
            raise SpecError(message)


def _is_stopped(stage: Study) -> bool:
    return Ledger(stage.storage.engine, stage.id).is_stopped()
