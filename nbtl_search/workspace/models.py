"""Models of a workspace: exported as a folder that timm loads, used, or trained without a study.

The arguments of the methods are explained at the functions of `nbtl_search.api`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nbtl_search.errors import SpecError, StudyNotFoundError
from nbtl_search.spec import Epoch, Progress, Recipe
from nbtl_search.spec.verdict import Verdict
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.exports.confusion import Confusion
    from nbtl_search.exports.export import Export
    from nbtl_search.exports.predict import Prediction

Which = Literal["default", "winner"]


@dataclass(frozen=True)
class Models:
    """The trained models of a workspace."""

    workspace: Workspace

    def export(
        self,
        name: str,
        output: Path,
        *,
        onnx: bool = False,
        seed_ensemble: bool = False,
        which: Which = "winner",
        force: bool = False,
    ) -> "Export":
        """Write the winner's weights of the first seed of the test stage, or of all its seeds."""
        from nbtl_search.study.verdicts import verdict_of

        with self.workspace.open_study(name) as study:
            found = verdict_of(study)
        if found is None or found.stage != "done":
            stands = "it never was" if found is None else f"its {found.stage} stage is not over"
            message = (
                f"a study is exported after it was finalised, got {name!r}: {stands}; run: "
                f"nbtl-search finalize {name}"
            )
            raise StudyNotFoundError(message)
        return write(
            found,
            output,
            study=name,
            onnx=onnx,
            seed_ensemble=seed_ensemble,
            which=which,
            force=force,
        )

    def train(
        self,
        recipe: Recipe,
        *,
        checkpoints: Path | None = None,
        progress: Progress | None = None,
        measuring: Progress | None = None,
    ) -> Iterator[Epoch]:
        """Train one recipe without a study, and yield its epochs."""
        from nbtl_search.data.prepared import prepare
        from nbtl_search.training import checkpoint
        from nbtl_search.training.run import Run
        from nbtl_search.training.run import train as epochs_of

        home = self.workspace.home
        prepared = prepare(recipe.data, home=home, progress=progress)
        run = Run(recipe, prepared=prepared, home=home, measuring=measuring)
        if checkpoints is not None and checkpoint.load_latest(checkpoints, run):
            yield from run.history
        for event in epochs_of(run):
            if isinstance(event, Epoch):
                # First on the disk, then shown: whoever stops at an epoch can go on from it.
                if checkpoints is not None:
                    checkpoint.save(checkpoints, run)
                yield event


def write(
    verdict: Verdict,
    output: Path,
    *,
    study: str,
    onnx: bool = False,
    seed_ensemble: bool = False,
    which: Which = "winner",
    force: bool = False,
) -> "Export":
    """Write the weights that a verdict speaks of; the arguments are those of `export`.

    Raises:
        WeightsError: the weights are not on this machine, or damaged; or `output` is taken.
    """
    from nbtl_search.exports.card import ModelCardData
    from nbtl_search.exports.export import export as write_folder

    # The default is first and the winner last; where the default won it is alone.
    chosen = verdict.entries[0] if which == "default" else verdict.entries[-1]
    data = ModelCardData(study=study, verdict=verdict, chosen=chosen)
    runs = data.runs if seed_ensemble else data.runs[:1]
    return write_folder(runs, output, data=data, onnx=onnx, force=force)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model makes of images."""

    labels: tuple[str, ...]
    """The model's classes."""
    images: "tuple[Prediction, ...]"
    truths: tuple[int | None, ...]
    """The class that the folder of each image names; None where it names none."""
    confusion: "Confusion | None"
    """Of the images whose class is known; None where there are none."""


def predict(
    model: Path,
    images: Sequence[str | Path],
    *,
    ten_crop: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    progress: Progress | None = None,
) -> Predictions:
    """Classify images with a model that `export` wrote, or any timm folder with label names.

    Args:
        model: the folder.
        images: files, folders and globs; where subfolders have the names of classes, accuracies
            are counted as well.
        ten_crop: average over ten crops of each image.
        batch_size: images, or crops of images, per forward.
        device: auto, cpu, cuda, cuda:1, mps.
        progress: called with the number of images done and of all.

    Raises:
        WeightsError: the folder is no such model, or damaged.
        DataError: an argument names no image.
        SpecError: the device is not on this machine, or the batch size is no size.
    """
    from nbtl_search.exports import confusion
    from nbtl_search.exports import predict as pictures
    from nbtl_search.exports.predict import open_classifier
    from nbtl_search.exports.predict import predict as predict_files

    if batch_size < 1:
        message = f"batch_size >= 1, got {batch_size}; pass 32"
        raise SpecError(message)
    classifier = open_classifier(Path(model), device=device)
    found = pictures.find_pictures(images)
    files = [picture.file for picture in found]
    predictions = []
    for prediction in predict_files(classifier, files, batch_size=batch_size, ten_crop=ten_crop):
        predictions.append(prediction)
        if progress is not None:
            progress(len(predictions), len(files))
    truths = pictures.true_labels(found, classifier.labels)
    pairs = [
        (truth, prediction.best(1)[0][0])
        for truth, prediction in zip(truths, predictions, strict=True)
        if truth is not None and prediction.error is None
    ]
    return Predictions(
        labels=classifier.labels,
        images=tuple(predictions),
        truths=tuple(truths),
        confusion=confusion.count(
            [truth for truth, _ in pairs],
            [label for _, label in pairs],
            labels=classifier.labels,
        ),
    )
