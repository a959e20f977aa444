"""Repeat the paper's tables 2-6 for one of its datasets."""

from collections.abc import Sequence
from pathlib import Path

from nbtl_search.api.creating import Progress, store_draft
from nbtl_search.api.drafting import drafted
from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened, opened_study
from nbtl_search.reports.reproduction import Reproduction, reproduction_of
from nbtl_search.spec import StudySpec
from nbtl_search.spec.paper_study import paper_study
from nbtl_search.study import records, store
from nbtl_search.study.storage import create_or_upgrade
from nbtl_search.study.verdicts import verdict_of


def reproduce(
    dataset: str,
    *,
    name: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    root: str | None = None,
    image_px: int | None = None,
    epochs: int | None = None,
    settings: Sequence[str] = (),
    home: Path | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Make the study of the paper's recipes where there is none yet, and return its tables.

    Where the study exists and nothing about it is given, it is only looked at.

    Args:
        dataset: `aircraft`, `caltech256`, `cars` or `dtd`.
        name: of the study; by default `paper-` and the dataset.
        model: a timm model, instead of the paper's Inception-v4.
        weights: as `model.weights`.
        root: where the images lie already.
        image_px: side of the network's input.
        epochs: of one run.
        settings: `dotted.key=value`, applied last.
        home: see above.
        storage: see above.
        progress: of decoding the images.

    Raises:
        SpecError: the paper has no such dataset, or a setting is not valid.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has other settings.
        StorageError: the database refuses.
    """
    home = home or default_home()
    given = {
        ("model", "name"): model,
        ("model", "weights"): weights,
        ("data", "root"): root,
        ("data", "image_px"): image_px,
        ("train", "epochs"): epochs,
    }
    changes = {place: value for place, value in given.items() if value is not None}
    spec = draft_reproduction(dataset, name=name, changes=changes, settings=settings)
    if changes or settings or not _exists(spec.name, home=home, storage=storage):
        spec = store_draft(spec, home=home, storage=storage, progress=progress)
    with opened_study(spec.name, storage, home) as study:
        trials = records.trials(study.storage.engine, study.id)
        return reproduction_of(study.spec, trials, verdict_of(study), dataset=dataset)


def draft_reproduction(
    dataset: str,
    *,
    name: str | None = None,
    changes: dict[tuple[str, str], str | int] | None = None,
    settings: Sequence[str] = (),
) -> StudySpec:
    """Return the specification that `reproduce` would store, without looking at data or weights.

    Args:
        dataset: see above.
        name: see above.
        changes: values by table and key.
        settings: see above.

    Raises:
        SpecError: the paper has no such dataset, or a setting is not valid.
    """
    plain = paper_study(dataset)
    for (table, key), value in (changes or {}).items():
        plain[table][key] = value
    return drafted(plain, name=name, settings=settings)


def _exists(name: str, *, home: Path, storage: str | None) -> bool:
    with opened(storage, home, checked=False) as database:
        create_or_upgrade(database)
        return name in {summary.name for summary in store.names(database)}
