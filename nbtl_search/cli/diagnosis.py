"""Command that measures how well the weights fit the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nbtl_search.cli.options import assignments, json_option, settings_option, storage_option
from nbtl_search.cli.output import console, echo_json, late_stages
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.spec import Diagnosis


@click.command("diagnose")
@click.argument("target", metavar="STUDY|DATASET")
@click.option("--model", help="A timm model; by default the study's.")
@click.option("--weights", help="timm, a .safetensors or .pth file, or a Hugging Face folder.")
@click.option("--root", help="Where a registered dataset's images lie already.")
@click.option("--image-px", type=int, help="Side of the network's input.")
@click.option(
    "--layer",
    default="pooled",
    show_default=True,
    help="Whose output is measured: pooled (what enters the classifier), or a block's number, "
    "from which no advice is made.",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="Images that the weights were trained on, one folder per class, or an .npz file with "
    "arrays prototypes and counts.",
)
@click.option(
    "--source-min-images",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Source classes with fewer images are left out.",
)
@click.option(
    "--save-source",
    type=click.Path(dir_okay=False, path_type=Path),
    help="An .npz file to keep the prototypes of a folder of source images in.",
)
@click.option(
    "--random-epochs",
    type=click.IntRange(min=1),
    help="Epochs of training from random weights; by default as many as a trial has, "
    "and at least 600 updates.",
)
@click.option(
    "--no-random",
    is_flag=True,
    help="Do not train from random weights, the longest part; then nothing can be concluded.",
)
@settings_option
@storage_option
@json_option
def diagnose_command(
    *,
    workspace: Workspace,
    target: str,
    layer: str,
    source: Path | None,
    source_min_images: int,
    save_source: Path | None,
    random_epochs: int | None,
    no_random: bool,
    settings: Sequence[str],
    as_json: bool,
    **shortcuts: str | int | None,
) -> None:
    """Measure how well the pre-trained weights fit the images of a study, a dataset or a folder.

    What was measured is kept, and the next `create` for the same images, weights and image size
    starts from it. Training from random weights takes about as long as one trial; what was
    interrupted goes on where it was.

    \b
    nbtl-search diagnose dtd
    nbtl-search diagnose ./photos --model mobilenetv2_100 --image-px 112 --random-epochs 20
    """
    if no_random and random_epochs is not None:
        message = "--random-epochs and --no-random exclude each other; give one"
        raise click.UsageError(message)
    from nbtl_search.network.allocator import keep_freed_memory

    keep_freed_memory()
    with late_stages() as progress:
        diagnosis = workspace.diagnoses.measure(
            target,
            layer=layer,
            source=source,
            min_source_images=source_min_images,
            save_source=save_source,
            random_epochs=random_epochs,
            no_random=no_random,
            settings=[*assignments(shortcuts), *settings],
            progress=progress,
        )
    if as_json:
        echo_json(_plain(diagnosis))
        return
    from nbtl_search.reports.terminal.diagnosis import render

    console().print(render(diagnosis))


def _plain(diagnosis: "Diagnosis") -> dict[str, Any]:
    """Return plain data with what is concluded; a measure without a value has null."""
    from dataclasses import asdict

    from nbtl_search.advice import conclude

    return diagnosis.model_dump(mode="json") | {"conclusion": asdict(conclude(diagnosis))}
