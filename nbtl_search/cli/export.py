"""The command that writes a model."""

from pathlib import Path
from typing import Literal

import click

from nbtl_search.cli.options import json_option, storage_option
from nbtl_search.cli.output import console, echo_json


@click.command("export")
@click.argument("study")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The folder to make; it must not exist, or be empty.",
)
@click.option("--onnx", is_flag=True, help="Write model.onnx too, checked against torch.")
@click.option(
    "--seed-ensemble", is_flag=True, help="All seeds of the test stage, to be averaged by predict."
)
@click.option(
    "--recipe",
    type=click.Choice(["default", "winner"]),
    default="winner",
    show_default=True,
    help="Whose weights.",
)
@click.option("--force", is_flag=True, help="Replace a folder that an earlier export made.")
@storage_option
@json_option
def export_command(
    *,
    study: str,
    output: Path,
    onnx: bool,
    seed_ensemble: bool,
    recipe: Literal["default", "winner"],
    force: bool,
    home: Path | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Write the final model of STUDY as a folder that timm loads, with a model card.

    The study is finalised first. The weights are those of the first seed of the test stage, never
    those that were best on the test images.

    \b
    nbtl-search export dtd -o model
    nbtl-search export dtd -o model --onnx
    """
    from nbtl_search import api

    with console(stderr=True).status("writing the model"):
        done = api.export(
            study,
            output,
            onnx=onnx,
            seed_ensemble=seed_ensemble,
            which=recipe,
            force=force,
            home=home,
            storage=storage,
        )
    if as_json:
        echo_json(
            {
                "folder": str(done.folder),
                "members": list(done.members),
                "n_classes": done.n_classes,
                "onnx_difference": done.onnx_difference,
            }
        )
        return
    what = f"{len(done.members)} models" if len(done.members) > 1 else "a model"
    click.echo(f"wrote {what} of {done.n_classes} classes to {output}; README.md is its card")
    if done.onnx_difference is not None:
        click.echo(f"model.onnx agrees with torch to {done.onnx_difference:.1g} of the logits")
    click.echo(f"use it: nbtl-search predict {output} IMAGES…")
