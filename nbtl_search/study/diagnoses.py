"""The diagnoses in a database: kept by what was measured, shown in the notes of its studies."""

import contextlib
import logging
from collections.abc import Iterator

from sqlalchemy import insert, select

from nbtl_search.errors import StorageError
from nbtl_search.ledger import locks, schema
from nbtl_search.ledger.database import Storage
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import POOLED, Diagnosis, Facts, StudySpec
from nbtl_search.study import store
from nbtl_search.study.note import with_diagnosis
from nbtl_search.study.store import Study

logger = logging.getLogger(__name__)


def record(storage: Storage, diagnosis: Diagnosis) -> None:
    """Keep a diagnosis beside earlier ones, and write it into the notes of its studies.

    Raises:
        StorageError: the database refuses.
    """
    row = {
        "data_digest": diagnosis.data_digest,
        "weights_digest": diagnosis.weights_digest,
        "model": diagnosis.model,
        "image_px": diagnosis.image_px,
        "layer": diagnosis.layer,
        "diagnosis": diagnosis.model_dump_json(),
    }
    with storage_errors(), storage.engine.begin() as connection:
        connection.execute(insert(schema.diagnosis).values(row))
    if diagnosis.layer == POOLED:
        for study in _studies_of(storage, diagnosis):
            with contextlib.suppress(StorageError):  # deleted meanwhile: no note, no harm
                show(study, latest(storage, study.spec) or diagnosis)
    logger.info("recorded", extra={"action": "diagnose", "dataset": diagnosis.dataset})


def latest(storage: Storage, spec: StudySpec) -> Diagnosis | None:
    """Return the last diagnosis of a study's images, weights and image format, if there is one.

    One with both accuracies goes before a later one without: nothing follows from that. The
    features must be those that enter the classifier: advice is made from no others.

    Raises:
        StorageError: the database refuses.
    """
    if spec.facts is None:
        return None
    kept = schema.diagnosis.c
    query = (
        select(kept.diagnosis)
        .where(
            kept.data_digest == spec.facts.data_digest,
            kept.weights_digest == spec.facts.weights_digest,
            kept.layer == POOLED,
        )
        .order_by(kept.diagnosis_id.desc())
    )
    with storage_errors(), storage.engine.connect() as connection:
        texts = connection.execute(query).scalars().all()
    found = [Diagnosis.parse_json(text) for text in texts]
    ours = [each for each in found if _is_of(each, spec, spec.facts)]
    return next((each for each in ours if each.is_conclusive), ours[0] if ours else None)


def show(study: Study, diagnosis: Diagnosis) -> None:
    """Write a diagnosis into a study's note, in place of an earlier one; the rest stays as it is.

    Raises:
        StorageError: the database refuses.
    """
    from optuna_dashboard import get_note, save_note  # noqa: PLC0415  (a web application)

    with storage_errors(), locks.holding_name(study.storage.engine, study.name):
        save_note(study.optuna, with_diagnosis(get_note(study.optuna), diagnosis))


def _studies_of(storage: Storage, diagnosis: Diagnosis) -> Iterator[Study]:
    for summary in store.names(storage):
        try:
            study = store.open_study(storage, summary.name)
        except (LookupError, StorageError):
            continue  # deleted meanwhile, or half of it from outside
        if _is_of(diagnosis, study.spec, study.facts):
            yield study


def _is_of(diagnosis: Diagnosis, spec: StudySpec, facts: Facts) -> bool:
    return (
        diagnosis.data_digest == facts.data_digest
        and diagnosis.weights_digest == facts.weights_digest
        and diagnosis.model == spec.model.name
        and diagnosis.image_px == spec.data.image_px
        and diagnosis.normalisation == spec.data.normalisation
    )
