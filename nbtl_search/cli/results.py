"""Commands that turn a search into results: confirm, report, export, compare with the paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from nbtl_search.cli.options import (
    json_option,
    launch_options,
    settings_option,
    storage_option,
    worker_options,
)
from nbtl_search.cli.output import (
    DECODING,
    console,
    echo_json,
    late_progress,
    late_stages,
    search_progress,
)
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.workspace.results import Format


_workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="By default one per GPU or core; 0 leaves it to workers on other machines.",
)


@click.command("finalize")
@click.argument("study")
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    help="Best trials of the search to try again beside the default; by default 3.",
)
@click.option(
    "--confirm-seeds",
    type=click.IntRange(min=2),
    help="Runs of each, judged on validation; by default 4.",
)
@click.option(
    "--test-seeds",
    type=click.IntRange(min=2),
    help="Runs of winner and default, judged on test; by default 4.",
)
@click.option(
    "--averages/--no-averages",
    default=None,
    help="Whether averages of their weights are candidates too; by default they are.",
)
@click.option(
    "--again", metavar="REASON", help="Read the test images once more; the reason is recorded."
)
@_workers_option
@launch_options
@storage_option
@json_option
def finalize_command(
    *,
    workspace: Workspace,
    study: str,
    candidates: int | None,
    confirm_seeds: int | None,
    test_seeds: int | None,
    averages: bool | None,
    again: str | None,
    workers: int | None,
    gpus: list[str] | None,
    beat_s: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Confirm the best recipes of STUDY over several seeds, then read the test images once.

    Its runs are trials like others: they may be killed, and go on with the same command.

    \b
    nbtl-search finalize dtd
    nbtl-search finalize dtd --candidates 2 --confirm-seeds 3
    """
    from nbtl_search.reports.terminal.finals import render

    with search_progress(quiet=quiet) as tick:
        verdict = workspace.results.finalize(
            study,
            candidates=candidates,
            confirm_seeds=confirm_seeds,
            test_seeds=test_seeds,
            averages=averages,
            again=again,
            workers=workers,
            gpus=gpus,
            options=worker_options(beat_s),
            on_tick=tick,
        )
    if as_json:
        echo_json(verdict.model_dump())
    else:
        console().print(render(verdict, name=study))


@click.command("ablate")
@click.argument("study")
@click.option("--trial", type=int, help="Whose recipe it is; by default the recommended one.")
@click.option(
    "--seeds",
    type=click.IntRange(min=2, max=100),
    help="Runs of each variant at most; by default 4. All have 2, then those in doubt more.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the picture, .svg or .png, or for its numbers, .csv.",
)
@_workers_option
@launch_options
@storage_option
@json_option
def ablate_command(
    *,
    workspace: Workspace,
    study: str,
    trial: int | None,
    seeds: int | None,
    output: Path | None,
    workers: int | None,
    gpus: list[str] | None,
    beat_s: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find out what each group of hyperparameters in the best recipe of STUDY is worth.

    The recipe, the same without one group at a time, and the default run with the same new seeds,
    judged on validation. The runs may be killed, and go on with the same command.

    \b
    nbtl-search ablate dtd
    nbtl-search ablate dtd --trial 17 --seeds 6 -o ablation.svg
    """
    from nbtl_search.reports.terminal.ablation import render

    with search_progress(quiet=quiet) as tick:
        found = workspace.results.ablate(
            study,
            trial=trial,
            seeds=seeds,
            output=output,
            workers=workers,
            gpus=gpus,
            options=worker_options(beat_s),
            on_tick=tick,
        )
    if as_json:
        echo_json(found.model_dump())
        return
    console().print(render(found, name=study))
    if output is not None:
        click.echo(f"picture: {output}")


_FORMATS = ("html", "md", "csv", "json")


@click.command("report")
@click.argument("study")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="File to write, '-' for standard output; by default STUDY-report.html (.md, .csv, .json).",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(_FORMATS),
    default="html",
    show_default=True,
    help="html is the whole page; the others are its tables.",
)
@click.option(
    "--figures",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write every figure to, as SVG, PNG and CSV.",
)
@storage_option
def report_command(
    *,
    workspace: Workspace,
    study: str,
    output: Path | None,
    kind: "Format",
    figures: Path | None,
) -> None:
    """Write what STUDY found as one HTML page, which opens from disk and needs no network.

    The CSV has a line per cell: table, row, column, value.

    \b
    nbtl-search report dtd -o report.html
    nbtl-search report dtd --format md -o -
    nbtl-search report dtd --figures figures/
    """
    to_stdout = output == Path("-")
    target = output or Path(f"{study}-report.{kind}")
    with late_stages() as step:
        text = workspace.results.report(
            study,
            None if to_stdout else target,
            kind=kind,
            figures=figures,
            on_step=step,
        )
    if to_stdout:
        click.echo(text, nl=False)
        return
    click.echo(f"report: {target} ({len(text.encode()) / 1e6:.1f} MB)")
    if figures is not None:
        click.echo(f"figures: {figures}")


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
    help="The recipe whose weights are written.",
)
@click.option("--force", is_flag=True, help="Replace a folder that an earlier export made.")
@storage_option
@json_option
def export_command(
    *,
    workspace: Workspace,
    study: str,
    output: Path,
    onnx: bool,
    seed_ensemble: bool,
    recipe: Literal["default", "winner"],
    force: bool,
    as_json: bool,
) -> None:
    """Write the final model of STUDY as a folder that timm loads, with a model card.

    The study is finalised first. The weights are those of the first seed of the test stage, never
    those that were best on the test images.

    \b
    nbtl-search export dtd -o model
    nbtl-search export dtd -o model --onnx
    """
    with console(stderr=True).status("writing the model"):
        done = workspace.models.export(
            study,
            output,
            onnx=onnx,
            seed_ensemble=seed_ensemble,
            which=recipe,
            force=force,
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
    workspace: Workspace,
    dataset: str,
    name: str | None,
    model: str | None,
    weights: str | None,
    root: str | None,
    image_px: int | None,
    epochs: int | None,
    form: str,
    settings: Sequence[str],
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
    from nbtl_search.reports import reproduction

    with late_progress(DECODING) as progress:
        found = workspace.results.reproduce(
            dataset,
            name=name,
            model=model,
            weights=weights,
            root=root,
            image_px=image_px,
            epochs=epochs,
            settings=settings,
            progress=progress,
        )
    if as_json:
        echo_json(found.plain())
    elif form == "md":
        click.echo(reproduction.markdown(found), nl=False)
    elif form == "csv":
        click.echo(reproduction.comma_separated(found), nl=False)
    else:
        console().print(reproduction.render(found))
