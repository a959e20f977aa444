"""Make a study: check its data and weights, and store it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbtl_search import space
from nbtl_search.advice import advise as advise_on
from nbtl_search.api.drafting import draft, with_starts, with_threads
from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened
from nbtl_search.errors import SpecError, StudyExistsError
from nbtl_search.spec import Advised, Diagnosis, StudySpec
from nbtl_search.study import diagnoses, memory, store
from nbtl_search.study.storage import Storage, create_or_upgrade
from nbtl_search.study.store import Study

if TYPE_CHECKING:
    from nbtl_search.data.cache import Prepared

Progress = Callable[[int, int], None]


def create(
    dataset: str | None = None,
    *,
    study: Path | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
    start: Sequence[str] = (),
    advise: bool | None = None,
    home: Path | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> StudySpec:
    """Check data and weights, and store a new study; the same one again changes nothing.

    Args:
        dataset: a shipped study's name, or a folder of images.
        study: a TOML file instead.
        name: of the study; by default that of the dataset or the file's.
        settings: `dotted.key=value`, applied last.
        start: regimes of the survey whose starting recipes are tried after the known ones:
            larger-similar, larger-dissimilar, smaller-similar, smaller-dissimilar.
        advise: start from what `diagnose` measured and from finished studies; by default where
            measures of these images and weights exist.
        home: folder for data, weights, checkpoints and the embedded database.
        storage: URL of the database; by default the embedded one.
        progress: is told how many images are decoded, and of how many.
        checking: is told how many methods were tried on the weights, and of how many.

    Raises:
        SpecError: the specification is not valid, or advice is wanted and nothing was measured.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has another specification.
        StorageError: the database refuses.
    """
    spec = draft(dataset, study=study, name=name, settings=settings)
    return store_draft(
        spec,
        start=start,
        advise=advise,
        home=home or default_home(),
        storage=storage,
        progress=progress,
        checking=checking,
    )


def store_draft(
    spec: StudySpec,
    *,
    start: Sequence[str] = (),
    advise: bool | None = None,
    home: Path,
    storage: str | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> StudySpec:
    """Check the data and weights of a drafted study, and store it; again, it changes nothing.

    Raises:
        SpecError: the specification does not suit the data or the network, or advice is wanted
            and nothing was measured.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has another specification.
        StorageError: the database refuses.
    """
    from nbtl_search.engine.probe import probe

    spec = with_threads(spec)
    with_starts(spec, start)  # what cannot be started from is refused before data are looked at
    facts = probe(spec, home=home, progress=progress, checking=checking)
    spec = with_starts(spec.replace(facts=facts), start)
    with opened(storage, home, checked=False) as database:
        create_or_upgrade(database)
        diagnosis = diagnoses.latest(database, spec)
        if diagnosis is None and advise:
            message = (
                f"advice needs measures of {spec.data.dataset!r} with these weights at "
                f"{spec.data.image_px} px, got none; run nbtl-search diagnose with the same options"
            )
            raise SpecError(message)
        advice = None
        if diagnosis is not None and advise is not False:
            advice = _advice(database, spec, diagnosis)
        study = store.create(database, spec.replace(advice=advice))
        _check_advice(study, advise=advise)
        if diagnosis is not None:
            diagnoses.show(study, diagnosis)
        return study.spec


def _check_advice(study: Study, *, advise: bool | None) -> None:
    """Refuse a wish about advice that an existing study does not fulfil."""
    has = study.spec.advice is not None
    if advise is not None and advise != has:
        kind = "with" if has else "without"
        message = (
            f"study {study.name!r} must be new for this wish about advice, and it exists {kind} "
            "advice; give another name, or delete it"
        )
        raise StudyExistsError(message)


def _advice(database: Storage, spec: StudySpec, diagnosis: Diagnosis) -> Advised:
    assert spec.facts is not None  # noqa: S101
    return advise_on(
        diagnosis,
        space=space.build_for(spec.search, spec.facts),
        known=spec.search.known,
        n_trials=spec.budget.n_trials,
        remembered=memory.remember(database, spec),
    )


def prepare(
    dataset: str,
    *,
    settings: Sequence[str] = (),
    skip_corrupt: bool = False,
    home: Path | None = None,
    progress: Progress | None = None,
) -> "Prepared":
    """Decode a dataset once, for every worker of this machine.

    Raises:
        DataError: the images cannot be had, or some are damaged and `skip_corrupt` is False.
    """
    spec = draft(dataset, settings=settings)
    from nbtl_search.data.cache import prepare as decode

    return decode(
        spec.data, home=home or default_home(), skip_corrupt=skip_corrupt, progress=progress
    )
