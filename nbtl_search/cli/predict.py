"""The command that classifies images."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nbtl_search.cli.options import json_option
from nbtl_search.cli.output import console, echo_json, late_progress

if TYPE_CHECKING:
    from nbtl_search.api.predicting import Predictions


@click.command("predict")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL_DIR")
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes per image."
)
@click.option("--ten-crop", is_flag=True, help="Average over ten crops of each image.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Images, or crops of images, at a time.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--confusion",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the confusion matrix here: .csv, or .json with the accuracies.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: file, rank, label, probability.")
@json_option
def predict_command(
    *,
    model: Path,
    images: tuple[str, ...],
    top_k: int,
    ten_crop: bool,
    batch_size: int,
    device: str,
    confusion: Path | None,
    as_csv: bool,
    as_json: bool,
) -> int:
    """Classify IMAGES (files, folders, globs) with the model in MODEL_DIR.

    Where subfolders have the names of the model's classes, accuracies are counted as well. Damaged
    files are named and left out; the exit code is 1 if none was left.

    \b
    nbtl-search predict model photos/*.jpg
    nbtl-search predict model photos --top-k 3 --json
    """
    from nbtl_search import api
    from nbtl_search.cli import predictions

    if as_csv and as_json:
        message = "--json and --csv exclude each other; give one"
        raise click.UsageError(message)
    predictions.check_confusion_file(confusion)
    with late_progress("images") as progress:
        found = api.predict(
            model,
            images,
            ten_crop=ten_crop,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    if as_json:
        echo_json(predictions.plain(found, top_k=top_k))
    elif as_csv:
        predictions.write_csv(found, sys.stdout, top_k=top_k)
    else:
        for part in predictions.render(found, top_k=top_k):
            console().print(part)
    return _end(found, confusion)


def _end(found: "Predictions", confusion: Path | None) -> int:
    """Name on stderr what could not be read, write the matrix, and return the exit code."""
    from nbtl_search.cli import predictions

    if confusion is not None:
        predictions.write_confusion(found, confusion)
    for line in predictions.complaints(found):
        click.echo(line, err=True)
    return 0 if any(image.error is None for image in found.images) else 1
