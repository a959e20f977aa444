"""Write the final model of a study as a folder that timm loads.

Classify images with an exported model.

Train one recipe without a study.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nbtl_search.data.prepared import prepare
from nbtl_search.errors import SpecError, StudyNotFoundError
from nbtl_search.spec import Epoch, Recipe
from nbtl_search.spec.verdict import Verdict
from nbtl_search.training import checkpoint
from nbtl_search.training.run import Run
from nbtl_search.training.run import train as epochs_of

if TYPE_CHECKING:
    from nbtl_search.exports.confusion import Confusion
    from nbtl_search.exports.export import Export
    from nbtl_search.exports.predict import Prediction

Which = Literal["default", "winner"]


def export(
    name: str,
    output: Path,
    *,
    onnx: bool = False,
    seed_ensemble: bool = False,
    which: Which = "winner",
    force: bool = False,
    home: Path | None = None,
    storage: str | None = None,
) -> "Export":
    """Write the winner's weights of the first seed of the test stage, or those of all its seeds.

    The first seed, whatever the test images said of it: to take the best would be to select on
    them.

    Args:
        name: of the study, which is finalised.
        output: the folder to make; it must not exist, or be empty.
        onnx: write model.onnx as well, checked against torch.
        seed_ensemble: all seeds, each in a folder of its own, to be averaged by `predict`.
        which: the winner, or the default recipe.
        force: replace a folder that an earlier export made.
        home: see above.
        storage: see above.

    Raises:
        StudyNotFoundError: no such study, or it is not finalised.
        WeightsError: the weights are not on this machine, or damaged; or `output` is taken.
    """
    from nbtl_search.study.verdicts import verdict_of
    from nbtl_search.workspace.workspace import default_home, opened_study

    with opened_study(name, storage, home or default_home()) as study:
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

    # The entries are the default and the winner, or the default alone where it won.
    chosen = verdict.entries[0] if which == "default" else verdict.entries[-1]
    data = ModelCardData(study=study, verdict=verdict, chosen=chosen)
    runs = data.runs if seed_ensemble else data.runs[:1]
    return write_folder(runs, output, data=data, onnx=onnx, force=force)


Progress = Callable[[int, int], None]


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


def train(
    recipe: Recipe,
    *,
    home: Path | None = None,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
    measuring: Progress | None = None,
) -> Iterator[Epoch]:
    """Train one recipe without a study, and yield its epochs.

    Args:
        recipe: what to train; `best` returns one.
        home: see above.
        checkpoints: a folder to resume from and to write to after each epoch.
        progress: of the decoding of images, where that is still to be done.
        measuring: of what some methods measure of the source network, once for a dataset.

    Raises:
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        DivergedError: the loss is no longer finite.
    """
    from nbtl_search.workspace.workspace import default_home

    home = home or default_home()
    prepared = prepare(recipe.data, home=home, progress=progress)
    run = Run(recipe, prepared=prepared, home=home, measuring=measuring)
    if checkpoints is not None and checkpoint.load_latest(checkpoints, run):
        yield from run.history
    for event in epochs_of(run):
        if isinstance(event, Epoch):
            if checkpoints is not None:
                checkpoint.save(checkpoints, run)
            yield event
