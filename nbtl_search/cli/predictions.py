"""Command `predict`: class probabilities of images as a table, JSON or CSV."""

import csv
import json
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from nbtl_search.cli.options import json_option
from nbtl_search.cli.output import console, echo_json, late_progress
from nbtl_search.errors import SpecError
from nbtl_search.escaping import terminal

if TYPE_CHECKING:
    from rich.table import Table

    from nbtl_search.exports.confusion import Confusion
    from nbtl_search.workspace.models import Predictions

SHOWN_MATRIX: Final = 20  # classes of a matrix that still fits a terminal


def render(found: "Predictions", *, top_k: int) -> "Iterator[Table | str]":
    """Yield the table of predictions and, where classes are known, accuracies and matrix."""
    if any(image.error is None for image in found.images):
        yield _images(found, top_k=top_k)
    if found.confusion is not None:
        yield "\nper class"
        yield _accuracies(found.confusion)
        if 0 < len(found.confusion.present()) <= SHOWN_MATRIX:
            yield "\nconfusion: a row per true class, a column for what it was taken for"
            yield _matrix(found.confusion)
        low, high = found.confusion.interval()
        yield (
            f"\ntop-1 {found.confusion.top1:.2f} % of {found.confusion.n_images} images "
            f"(95 % interval {low:.2f} to {high:.2f})"
        )


def plain(found: "Predictions", *, top_k: int) -> list[dict[str, Any]]:
    """Return plain data for JSON: one object per file."""
    rows: list[dict[str, Any]] = []
    for image, truth in zip(found.images, found.truths, strict=True):
        best = [
            {"label": found.labels[label], "probability": probability}
            for label, probability in image.best(top_k)
        ]
        row: dict[str, Any] = {"file": str(image.file), "predictions": best}
        row |= {} if truth is None else {"truth": found.labels[truth]}
        rows.append(row | ({} if image.error is None else {"error": image.error}))
    return rows


def write_csv(found: "Predictions", stream: TextIO, *, top_k: int) -> None:
    """Write one line per file and rank."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["file", "rank", "label", "probability"])
    for image in found.images:
        for rank, (label, probability) in enumerate(image.best(top_k), 1):
            name = _encodable(str(image.file))
            writer.writerow([name, rank, _encodable(found.labels[label]), f"{probability:.6g}"])


def complaints(found: "Predictions") -> list[str]:
    """Return a line for each file that is no sound image, and their number."""
    bad = [image for image in found.images if image.error is not None]
    if not bad:
        return []
    lines = [f"skipped {terminal(str(i.file))}: {terminal(i.error or '')}" for i in bad]
    return [*lines, f"{len(bad)} of {len(found.images)} files could not be read"]


def check_confusion_file(file: Path | None) -> None:
    """Check before any work that the matrix can be written.

    Raises:
        SpecError: another ending than .csv or .json, or no such folder.
    """
    if file is not None and (file.suffix not in {".csv", ".json"} or not file.parent.is_dir()):
        message = (
            f"--confusion takes a .csv or .json file in a folder that exists, got {str(file)!r}; "
            "name another"
        )
        raise SpecError(message)


def write_confusion(found: "Predictions", file: Path) -> None:
    """Write the matrix as CSV (rows: true class), or with the accuracies as JSON.

    Raises:
        SpecError: no image lies in a folder with the name of a class, or the file cannot be
            written.
    """
    from nbtl_search.files.atomic import write_durably

    if found.confusion is None:
        message = (
            "--confusion needs images in folders with the names of the model's classes, got none "
            f"that could be read ({', '.join(map(terminal, found.labels[:3]))}, …); "
            "name such a folder"
        )
        raise SpecError(message)
    if file.suffix == ".json":
        text = json.dumps(found.confusion.plain(), indent=2) + "\n"
    else:
        text = _matrix_csv(found.confusion)
    try:
        write_durably(file, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        message = f"--confusion takes a file that can be written, got {str(file)!r}: {error}"
        raise SpecError(message) from error


def _matrix_csv(confusion: "Confusion") -> str:
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["true \\ predicted", *confusion.labels])
    for label, row in zip(confusion.labels, confusion.matrix.tolist(), strict=True):
        writer.writerow([label, *row])
    return stream.getvalue()


def _images(found: "Predictions", *, top_k: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    if top_k > 1 and len(found.labels) > 1:
        table.add_column("next", style="dim", overflow="fold")
    for image in found.images:
        if image.error is not None:
            continue
        (first, probability), *others = image.best(top_k)
        following = ", ".join(
            f"{terminal(found.labels[i])} {100 * p:.1f}\u00a0%" for i, p in others
        )
        cells = [
            terminal(str(image.file)),
            terminal(found.labels[first]),
            f"{100 * probability:.1f} %",
        ]
        cells += [following] if len(table.columns) > len(cells) else []
        table.add_row(*map(Text, cells))  # not as markup: a class may be called [red]
    return table


def _accuracies(confusion: "Confusion") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("class", overflow="fold")
    table.add_column("n", justify="right")
    table.add_column("top-1", justify="right", no_wrap=True)
    for index, n, right in confusion.per_class():
        name = terminal(confusion.labels[index])
        table.add_row(Text(name), str(n), f"{100 * right / n:.1f} %")
    return table


def _matrix(confusion: "Confusion") -> "Table":
    from rich.table import Table
    from rich.text import Text

    present = confusion.present()
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for position in range(len(present)):
        table.add_column(str(position + 1), justify="right", no_wrap=True)
    for position, index in enumerate(present):
        name = Text(f"{position + 1} {terminal(confusion.labels[index])}")
        counts = [int(confusion.matrix[index, other]) for other in present]
        table.add_row(name, *(str(n) if n else "·" for n in counts))
    return table


def _encodable(text: str) -> str:
    """Return text for UTF-8: file names may hold bytes that are none."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


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
    if as_csv and as_json:
        message = "--json and --csv exclude each other; give one"
        raise click.UsageError(message)
    check_confusion_file(confusion)
    from nbtl_search.workspace.models import predict

    with late_progress("images") as progress:
        found = predict(
            model,
            images,
            ten_crop=ten_crop,
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
    if as_json:
        echo_json(plain(found, top_k=top_k))
    elif as_csv:
        write_csv(found, sys.stdout, top_k=top_k)
    else:
        for part in render(found, top_k=top_k):
            console().print(part)
    return _end(found, confusion)


def _end(found: "Predictions", confusion: Path | None) -> int:
    """Name on stderr what could not be read, write the matrix, and return the exit code."""
    if confusion is not None:
        write_confusion(found, confusion)
    for line in complaints(found):
        click.echo(line, err=True)
    return 0 if any(image.error is None for image in found.images) else 1
