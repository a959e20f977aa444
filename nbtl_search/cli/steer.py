"""Commands that steer a search."""

from pathlib import Path
from typing import Literal

import click

from nbtl_search.cli.options import storage_option


def _steer(
    study: str,
    wish: Literal["pause", "resume", "stop"],
    home: Path | None,
    storage: str | None,
    said: str,
) -> None:
    from nbtl_search import api

    api.steer(study, wish, home=home, storage=storage)
    click.echo(f"study {study!r} {said}")


@click.command("pause")
@click.argument("study")
@storage_option
def pause_command(*, study: str, home: Path | None, storage: str | None) -> None:
    """Checkpoint all running trials of STUDY and let its workers wait for `resume`.

    \b
    nbtl-search pause dtd
    """
    _steer(study, "pause", home, storage, "pauses with the next heartbeat of its workers")


@click.command("resume")
@click.argument("study")
@storage_option
def resume_command(*, study: str, home: Path | None, storage: str | None) -> None:
    """Go on with STUDY after `pause` or `stop`; after `stop`, launch workers again.

    \b
    nbtl-search resume dtd
    """
    _steer(study, "resume", home, storage, "goes on; workers that ended need a new launch")


@click.command("stop")
@click.argument("study")
@storage_option
def stop_command(*, study: str, home: Path | None, storage: str | None) -> None:
    """Checkpoint all running trials of STUDY and end its workers; nothing is lost.

    \b
    nbtl-search stop dtd
    """
    _steer(study, "stop", home, storage, "stops with the next heartbeat of its workers")


@click.command("delete")
@click.argument("study")
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_option
def delete_command(*, study: str, yes: bool, home: Path | None, storage: str | None) -> None:
    """Delete STUDY with all its trials, after asking.

    \b
    nbtl-search delete dtd
    """
    from nbtl_search import api

    report, trials = api.status(study, home=home, storage=storage)
    n_workers = len(report.workers)
    if not yes:
        working = f"; {n_workers} workers are at it and will end" if n_workers else ""
        click.confirm(f"delete study {study!r} with {len(trials)} trials{working}?", abort=True)
    api.delete(study, home=home, storage=storage)
    click.echo(f"study {study!r} is deleted")
