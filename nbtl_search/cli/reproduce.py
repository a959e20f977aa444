"""The command that repeats the paper's tables."""

from collections.abc import Sequence
from pathlib import Path

import click

from nbtl_search.cli.options import json_option, settings_option, storage_option
from nbtl_search.cli.output import DECODING, console, echo_json, late_progress


@click.command("reproduce")
@click.argument("dataset")
@click.option("--name", help="Of the study; by default paper-DATASET.")
@click.option("--model", help="A timm model instead of the paper's inception_v4.")
@click.option("--weights", help="timm, a .safetensors or .pth file, or a Hugging Face folder.")
@click.option("--root", help="Where the dataset's images lie already.")
@click.option("--image-px", type=int, help="Side of the network's input.")
@click.option("--epochs", type=int, help="Epochs of one run.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "md", "csv"]),
    default="text",
    show_default=True,
    help="For people, for a document, or for a spreadsheet.",
)
@settings_option
@storage_option
@json_option
def reproduce_command(
    *,
    dataset: str,
    name: str | None,
    model: str | None,
    weights: str | None,
    root: str | None,
    image_px: int | None,
    epochs: int | None,
    form: str,
    settings: Sequence[str],
    home: Path | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Repeat the paper's tables 2-6 for DATASET: aircraft, caltech256, cars or dtd.

    The first call makes a study of every recipe in them; `launch` trains it, and each later call
    shows how far the tables are filled.

    \b
    nbtl-search reproduce dtd
    nbtl-search launch paper-dtd
    nbtl-search reproduce dtd --format md > dtd.md
    """
    from nbtl_search import api
    from nbtl_search.reports.terminal import reproduction_text

    with late_progress(DECODING) as progress:
        found = api.reproduce(
            dataset,
            name=name,
            model=model,
            weights=weights,
            root=root,
            image_px=image_px,
            epochs=epochs,
            settings=settings,
            home=home,
            storage=storage,
            progress=progress,
        )
    if as_json:
        echo_json(found.plain())
    elif form == "md":
        click.echo(reproduction_text.markdown(found), nl=False)
    elif form == "csv":
        click.echo(reproduction_text.comma_separated(found), nl=False)
    else:
        console().print(reproduction_text.render(found))
