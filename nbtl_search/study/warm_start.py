"""What finished studies of the same database have found: evidence for the next one."""

from typing import Final

from nbtl_search import space
from nbtl_search.advice import Remembered, RememberedRecipe
from nbtl_search.errors import StorageError
from nbtl_search.ledger import records
from nbtl_search.ledger.database import Storage
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.ledger.records import DEFAULT, TrialRecord
from nbtl_search.spec import StudySpec
from nbtl_search.study import diagnoses, store
from nbtl_search.study.store import Study

N_BEST: Final = 3  # recipes remembered of a study: it gives its best before another's second


def remember(storage: Storage, spec: StudySpec) -> list[Remembered]:
    """Return the best recipes of every finished study of the same network, but for this one.

    Another study of the same images counts: it is the closest of all.

    Raises:
        StorageError: the database refuses.
    """
    found = []
    for summary in store.names(storage):
        if summary.name == spec.name:
            continue
        try:
            study = store.open_study(storage, summary.name)
        except (LookupError, StorageError):
            continue  # deleted meanwhile, or half of it from outside
        if study.spec.model.name == spec.model.name and _is_over(study):
            remembered = _remembered(study)
            found += [remembered] if remembered.recipes else []
    return found


def _is_over(study: Study) -> bool:
    ledger = Ledger(study.storage.engine, study.id)
    return ledger.is_over() or ledger.desired() == "stop"


def _remembered(study: Study) -> Remembered:
    trials = [
        trial
        for trial in records.trials(study.storage.engine, study.id)
        if trial.state == "complete" and trial.value is not None
    ]
    default = next((trial.value for trial in trials if trial.name == DEFAULT), None)
    best = sorted(trials, key=lambda trial: (-(trial.value or 0.0), trial.number))[:N_BEST]
    n_blocks = study.facts.n_blocks
    return Remembered(
        study=study.name,
        diagnosis=diagnoses.latest(study.storage, study.spec),
        model=study.spec.model.name,
        image_px=study.spec.data.image_px,
        recipes=tuple(_recipe(trial, default, n_blocks) for trial in best),
    )


def _recipe(trial: TrialRecord, default: float | None, n_blocks: int) -> RememberedRecipe:
    """Return what a trial found; L2-SP that its network's new blocks cut short counts as cut."""
    assert trial.value is not None  # noqa: S101
    dials = trial.dials
    most = space.Limit(dial="n_l2sp").most(dict(dials), n_blocks=n_blocks)
    if dials.n_l2sp > most:
        dials = dials.replace(n_l2sp=most)
    return RememberedRecipe(
        trial=trial.number,
        top1=trial.value,
        gain=None if default is None else trial.value - default,
        dials=dials.model_dump(),
    )
