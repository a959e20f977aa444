"""The warm start of a study: what finished studies of the same database have found."""

from typing import Final

from nbtl_search import space
from nbtl_search.advice import EarlierRecipe, EarlierStudy
from nbtl_search.ledger import records
from nbtl_search.ledger.database import Storage
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.spec import Dials, StudySpec
from nbtl_search.spec.verdict import Estimate
from nbtl_search.study import diagnoses, store
from nbtl_search.study.store import Study

N_BEST: Final = 3  # recipes of each: they are tried in turns, and few turns come


def earlier_studies(
    storage: Storage, spec: StudySpec, *, source: str | None = None
) -> list[EarlierStudy]:
    """Return the best recipes of every finished study of the same network, but for this one.

    Another study of the same images counts: it is the closest of all. The source of a fork does
    not: what it found is taken over as it is.

    Raises:
        StorageError: the database refuses.
    """
    found = []
    for study in store.open_all(storage, without={spec.name, source}):
        is_ended = not Ledger(storage.engine, study.id).goes_on()
        if study.spec.model.name == spec.model.name and is_ended:
            earlier = _earlier(study)
            found += [earlier] if earlier.recipes else []
    return found


def _earlier(study: Study) -> EarlierStudy:
    trials = records.trials(study.storage.engine, study.id)
    found = recommend(trials, n_images=study.facts.n_val)
    usual = found.value_of(found.default)
    n_blocks = study.facts.n_blocks
    return EarlierStudy(
        study=study.name,
        diagnosis=diagnoses.latest(study.storage, study.spec),
        model=study.spec.model.name,
        image_px=study.spec.data.image_px,
        recipes=tuple(
            _recipe(trial, value, usual, n_blocks) for trial, value in found.ranked[:N_BEST]
        ),
    )


def with_l2sp_cut(dials: Dials, *, n_blocks: int) -> Dials:
    """Return the dials with L2-SP up to the new blocks, which had cut it short anyway."""
    most = space.Limit(dial="n_l2sp").most(dict(dials), n_blocks=n_blocks)
    return dials.replace(n_l2sp=most) if dials.n_l2sp > most else dials


def _recipe(
    trial: TrialRecord, value: Estimate, usual: Estimate | None, n_blocks: int
) -> EarlierRecipe:
    """Return what a trial found."""
    dials = with_l2sp_cut(trial.dials, n_blocks=n_blocks)
    return EarlierRecipe(
        trial=trial.number,
        top1=value.mean,
        gain=None if usual is None else value.mean - usual.mean,
        dials=dials.model_dump(),
    )
