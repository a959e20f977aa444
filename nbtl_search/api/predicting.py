"""Classify images with an exported model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbtl_search.errors import SpecError

if TYPE_CHECKING:
    from nbtl_search.exports.confusion import Confusion
    from nbtl_search.exports.predict import Prediction

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
    from nbtl_search.exports import confusion, pictures
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
