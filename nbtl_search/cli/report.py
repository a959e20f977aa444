"""The command that writes what a study found."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nbtl_search.cli.options import storage_option
from nbtl_search.cli.output import late_stages

if TYPE_CHECKING:
    from nbtl_search.api.reporting import Format

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
    study: str,
    output: Path | None,
    kind: "Format",
    figures: Path | None,
    home: Path | None,
    storage: str | None,
) -> None:
    """Write what STUDY found as one HTML page, which opens from disk and needs no network.

    The CSV has a line per cell: table, row, column, value.

    \b
    nbtl-search report dtd -o report.html
    nbtl-search report dtd --format md -o -
    nbtl-search report dtd --figures figures/
    """
    from nbtl_search import api

    to_stdout = output == Path("-")
    target = output or Path(f"{study}-report.{kind}")
    with late_stages() as step:
        text = api.report(
            study,
            None if to_stdout else target,
            kind=kind,
            figures=figures,
            home=home,
            storage=storage,
            on_step=step,
        )
    if to_stdout:
        click.echo(text, nl=False)
        return
    click.echo(f"report: {target} ({len(text.encode()) / 1e6:.1f} MB)")
    if figures is not None:
        click.echo(f"figures: {figures}")
