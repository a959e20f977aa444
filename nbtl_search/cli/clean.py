"""Commands for what workers leave on the disk: checkpoints and logs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nbtl_search.cli.options import home_option, json_option, storage_option
from nbtl_search.cli.output import echo_json

if TYPE_CHECKING:
    from nbtl_search.api.cleaning import LogLine


@click.command("clean")
@click.argument("study", required=False)
@click.option("--dry-run", is_flag=True, help="Show what would go, and remove nothing.")
@click.option(
    "--older-than",
    "older_than_days",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Age from which logs of studies without live workers go.",
)
@storage_option
@json_option
def clean_command(
    *,
    study: str | None,
    dry_run: bool,
    older_than_days: float,
    home: Path | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Remove checkpoints of trials that ended, those of deleted studies, and old logs.

    What an open trial needs, weights of final runs, decoded images and downloads stay.

    \b
    nbtl-search clean --dry-run
    nbtl-search clean dtd
    """
    from nbtl_search import api

    found = api.clean(
        study, older_than_days=older_than_days, dry_run=dry_run, home=home, storage=storage
    )
    total = sum(item.n_bytes for item in found)
    if as_json:
        rows = [{"path": item.path, "why": item.why, "bytes": item.n_bytes} for item in found]
        echo_json({"removed": not dry_run, "bytes": total, "items": rows})
        return
    for item in found:
        click.echo(f"{item.n_bytes / 1e6:10.1f} MB  {item.why}: {printable(str(item.path))}")
    verb = "would be" if dry_run else "were"
    click.echo(f"{total / 1e6:.1f} MB in {len(found)} places {verb} removed")


@click.command("logs")
@click.argument("study")
@click.option("--worker", help="Only files with this in their name: a worker, a slot, a job.")
@click.option(
    "--lines",
    "n_lines",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Of each file.",
)
@click.option("--follow", is_flag=True, help="Stay, and show what is added, until Ctrl-C.")
@home_option
@json_option
def logs_command(
    *,
    study: str,
    worker: str | None,
    n_lines: int,
    follow: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Show what the workers of STUDY wrote, on this machine or on the cluster's shared disk.

    \b
    nbtl-search logs dtd
    nbtl-search logs dtd --worker slot-0 --follow
    """
    from nbtl_search import api

    found = api.logs(study, worker=worker, n_lines=n_lines, home=home)
    if as_json:
        echo_json([{"file": line.file, "text": line.text} for line in found])
        return
    folder = api.logs_folder(study, home=home)
    for line in found:
        _say(line, folder)
    click.echo(f"in {folder}", err=True)
    if follow:
        try:
            for line in api.follow(study, worker=worker, home=home):
                _say(line, folder)
        except KeyboardInterrupt:
            return


def _say(line: "LogLine", folder: Path) -> None:
    click.echo(f"{line.file.relative_to(folder)}: {printable(line.text)}")


def printable(text: str) -> str:
    """Return the text with control characters written out: a log may hold anything."""
    return "".join(
        character if character.isprintable() or character == "\t" else repr(character)[1:-1]
        for character in text
    )
