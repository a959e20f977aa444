"""Make a study: check its data and weights, and store it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbtl_search.api.drafting import draft
from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened
from nbtl_search.launchers import local
from nbtl_search.spec import StudySpec
from nbtl_search.study import store
from nbtl_search.study.storage import create_or_upgrade

if TYPE_CHECKING:
    from nbtl_search.data.cache import Prepared

Progress = Callable[[int, int], None]


def create(
    dataset: str | None = None,
    *,
    study: Path | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
    home: Path | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> StudySpec:
    """Check data and weights, and store a new study; the same one again changes nothing.

    Raises:
        SpecError: the specification is not valid.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has another specification.
        StorageError: the database refuses.
    """
    spec = draft(dataset, study=study, name=name, settings=settings)
    return store_draft(spec, home=home or default_home(), storage=storage, progress=progress)


def store_draft(
    spec: StudySpec, *, home: Path, storage: str | None = None, progress: Progress | None = None
) -> StudySpec:
    """Check the data and weights of a drafted study, and store it; again, it changes nothing.

    Raises:
        SpecError: the specification does not suit the data or the network.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has another specification.
        StorageError: the database refuses.
    """
    from nbtl_search.engine.probe import probe

    spec = _with_threads(spec)
    facts = probe(spec, home=home, progress=progress)
    spec = spec.replace(facts=facts)
    with opened(storage, home, checked=False) as database:
        create_or_upgrade(database)
        return store.create(database, spec).spec


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


def _with_threads(spec: StudySpec) -> StudySpec:
    """Fix the threads of a CPU slot: they are part of the result, bit for bit."""
    if spec.train.n_threads is not None or local.gpus():
        return spec
    return spec.replace(train=spec.train.replace(n_threads=1))
