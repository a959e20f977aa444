"""Cancellation of one trial of a search that its owner wants no more."""

from nbtl_search.errors import SpecError, StudyNotFoundError
from nbtl_search.ledger import cancellation, records
from nbtl_search.ledger.cancellation import Cancelled
from nbtl_search.study import sampling
from nbtl_search.study.store import Study


def cancel(study: Study, number: int) -> Cancelled:
    """End a trial with what it has trained: now, or with the next heartbeat of its worker.

    It counts as one of the study's trials; epochs that it was granted and has not trained are
    others' again. The sampler learns from its last report.

    Args:
        study: a search, whether it runs, is paused or stopped.
        number: of the trial.

    Raises:
        StudyNotFoundError: no such trial.
        SpecError: the trial has ended, is the default recipe's, or is a final run.
        StorageError: the database refuses.
    """
    if study.stage is not None:
        message = (
            f"a trial of a search is cancelled, got the final runs {study.name!r}, which are "
            "compared seed by seed and need each other; to end them all, stop their study"
        )
        raise SpecError(message)
    trials = {trial.number: trial for trial in records.trials(study.storage.engine, study.id)}
    if number not in trials:
        there = f"trials {min(trials)} to {max(trials)}" if trials else "no trial yet"
        message = (
            f"a trial is cancelled by its number, got {number}, and study {study.name!r} has "
            f"{there}; see: nbtl-search status {study.name}"
        )
        raise StudyNotFoundError(message)
    if trials[number].name == records.DEFAULT:
        message = (
            f"the default recipe is trained to its end, as every result is compared with it, got "
            f"its trial {number}; to end the search, stop study {study.name!r}"
        )
        raise SpecError(message)
    cancelled = cancellation.cancel(study.storage.engine, study.id, number)
    if cancelled is None:
        message = (
            f"a trial is cancelled before it has ended, got trial {number} of study "
            f"{study.name!r}, which has; see: nbtl-search status {study.name}"
        )
        raise SpecError(message)
    # Killed before this line, or with the database lost, the next worker does it.
    sampling.tell_ended(study)
    return cancelled
