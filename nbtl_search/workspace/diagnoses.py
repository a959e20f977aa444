"""Diagnose how well pre-trained weights fit a dataset, and keep what was measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nbtl_search.errors import SpecError, StudyNotFoundError
from nbtl_search.ledger.database import create_or_upgrade
from nbtl_search.postgres import server
from nbtl_search.spec import POOLED, Diagnosis, Dials, StudySpec
from nbtl_search.spec.study import shipped_studies
from nbtl_search.study import diagnoses, store
from nbtl_search.workspace.studies import draft, drafted, with_threads
from nbtl_search.workspace.workspace import default_home, opened

if TYPE_CHECKING:
    from nbtl_search.source.prototypes import SourceImages

OnStage = Callable[[str, int, int], None]


def diagnose(
    target: str,
    *,
    layer: str = POOLED,
    source: Path | str | None = None,
    min_source_images: int = 200,
    save_source: Path | str | None = None,
    random_epochs: int | None = None,
    no_random: bool = False,
    settings: Sequence[str] = (),
    home: Path | None = None,
    storage: str | None = None,
    progress: OnStage | None = None,
) -> Diagnosis:
    """Measure how well the pre-trained weights fit the images, and keep it in the database.

    Args:
        target: a study of the database, a shipped study's name, or a folder of images.
        layer: 'pooled' (what enters the classifier), or a block's number from the input.
        source: an .npz file of source prototypes, or a folder of source images by class.
        min_source_images: source classes with fewer are left out.
        save_source: an .npz file to write the prototypes of a folder of source images to.
        random_epochs: of the training from random weights; by default as many as a trial has, and
            at least 600 updates.
        no_random: leave that training out; so it is for a block, which gives no advice, unless
            epochs are asked for.
        settings: `dotted.key=value`, applied to the study or the shipped one.
        home: folder for data, weights, features and the embedded database.
        storage: URL of the database; by default the embedded one.
        progress: called with (stage, done, in all).

    Raises:
        SpecError: the target is unknown, a setting is not valid, or the weights are random.
        DataError: images or source prototypes cannot be had, or do not fit.
        WeightsError: the weights cannot be had, or are not those of the source prototypes.
        StorageError: the database refuses.
    """
    home = home or default_home()
    spec = with_threads(_spec(target, settings=settings, home=home, storage=storage))
    from nbtl_search.diagnosis.diagnosis import diagnose as measure

    skipped = no_random or (layer != POOLED and random_epochs is None)
    given = _source(source, min_images=min_source_images, save=save_source)
    diagnosis = measure(
        spec.recipe(Dials()),
        home=home,
        layer=layer,
        source=given,
        random_epochs=0 if skipped else random_epochs,
        seed=spec.train.seed,
        on_stage=progress,
    )
    with opened(storage, home, checked=False) as database:
        create_or_upgrade(database)
        diagnoses.record(database, diagnosis)
    return diagnosis


def _source(
    place: Path | str | None, *, min_images: int, save: Path | str | None
) -> "SourceImages | None":
    from nbtl_search.source.prototypes import SourceImages

    if place is None:
        if save is not None:
            message = "prototypes are saved of a folder of source images, got none; give --source"
            raise SpecError(message)
        return None
    return SourceImages(
        place=Path(place).expanduser(),
        min_images=min_images,
        save=None if save is None else Path(save).expanduser(),
    )


def _spec(target: str, *, settings: Sequence[str], home: Path, storage: str | None) -> StudySpec:
    """Return what is to be diagnosed; a study goes before a dataset of the same name."""
    if storage is None and server.status(home).version is None:
        return _dataset(target, settings)  # without making a database for a mere question
    with opened(storage, home, checked=False) as database:
        create_or_upgrade(database)
        try:
            spec = store.open_study(database, target).spec
        except StudyNotFoundError:
            return _dataset(target, settings)
    return drafted(spec.plain(), settings=settings) if settings else spec


def _dataset(target: str, settings: Sequence[str]) -> StudySpec:
    if not _is_dataset(target):
        names = ", ".join(name for name in shipped_studies() if name != "folder")
        message = (
            f"diagnose takes a study of the database, one of {names}, or a folder of images; got "
            f"{target!r}; name one that exists"
        )
        raise SpecError(message)
    return draft(target, settings=settings)


def _is_dataset(target: str) -> bool:
    return target in shipped_studies() or Path(target).expanduser().is_dir()
