"""Diagnoses of a workspace: how well pre-trained weights fit a dataset, measured and kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbtl_search.errors import SpecError, StudyNotFoundError
from nbtl_search.postgres import server
from nbtl_search.spec import POOLED, Diagnosis, Dials, StageProgress, StudySpec
from nbtl_search.spec.study import shipped_studies
from nbtl_search.study import diagnoses, store
from nbtl_search.workspace.drafts import draft, drafted, with_threads
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.source.prototypes import SourceImages


@dataclass(frozen=True)
class Diagnoses:
    """The diagnoses in a workspace's database."""

    workspace: Workspace

    def measure(
        self,
        target: str,
        *,
        layer: str = POOLED,
        source: Path | str | None = None,
        min_source_images: int = 200,
        save_source: Path | str | None = None,
        random_epochs: int | None = None,
        no_random: bool = False,
        settings: Sequence[str] = (),
        progress: StageProgress | None = None,
    ) -> Diagnosis:
        """Measure how well the weights fit the images, and keep it: `nbtl_search.api.diagnose`."""
        spec = with_threads(self._spec(target, settings=settings))
        from nbtl_search.diagnosis.diagnosis import diagnose

        # A block gives no advice, so that its training from random weights has to be asked for.
        skipped = no_random or (layer != POOLED and random_epochs is None)
        diagnosis = diagnose(
            spec.recipe(Dials()),
            home=self.workspace.home,
            layer=layer,
            source=_source(source, min_images=min_source_images, save=save_source),
            random_epochs=0 if skipped else random_epochs,
            seed=spec.train.seed,
            on_stage=progress,
        )
        # Measuring may take as long as a trial: no connection is held meanwhile.
        with self.workspace.open_database_of_any_version() as database:
            diagnoses.record(database, diagnosis)
        return diagnosis

    def _spec(self, target: str, *, settings: Sequence[str]) -> StudySpec:
        """Return what is to be diagnosed; a study goes before a dataset of the same name."""
        workspace = self.workspace
        if workspace.storage is None and server.status(workspace.home).version is None:
            return _of_dataset(target, settings)  # without making a database for a mere question
        with workspace.open_database_of_any_version() as database:
            try:
                spec = store.open_study(database, target).spec
            except StudyNotFoundError:
                return _of_dataset(target, settings)
        return drafted(spec.plain(), settings=settings) if settings else spec


def _source(
    path: Path | str | None, *, min_images: int, save: Path | str | None
) -> "SourceImages | None":
    from nbtl_search.source.prototypes import SourceImages

    if path is None:
        if save is not None:
            message = "prototypes are saved of a folder of source images, got none; give --source"
            raise SpecError(message)
        return None
    return SourceImages(
        place=Path(path).expanduser(),
        min_images=min_images,
        save=None if save is None else Path(save).expanduser(),
    )


def _of_dataset(target: str, settings: Sequence[str]) -> StudySpec:
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
