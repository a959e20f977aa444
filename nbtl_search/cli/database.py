"""Commands for the database."""

from pathlib import Path

import click

from nbtl_search.cli.options import home_option, json_option, storage_option
from nbtl_search.cli.output import echo_json


@click.group("db")
def db_command() -> None:
    """Start, stop, inspect or upgrade the database.

    \b
    nbtl-search db status
    NBTL_STORAGE_FILE=~/url nbtl-search db upgrade
    """


@db_command.command("start")
@home_option
def start_command(*, home: Path | None) -> None:
    """Start the embedded database; every command that needs it does so by itself."""
    from nbtl_search.api import default_home
    from nbtl_search.study import embedded

    embedded.start(home or default_home())
    click.echo("the embedded database is up")


@db_command.command("stop")
@home_option
def stop_command(*, home: Path | None) -> None:
    """Stop the embedded database; workers wait for it and go on when it is back."""
    from nbtl_search.api import default_home
    from nbtl_search.study import embedded

    stopped = embedded.stop(home or default_home())
    click.echo("the embedded database is stopped" if stopped else "it was not running")


@db_command.command("status")
@home_option
@json_option
def status_command(*, home: Path | None, as_json: bool) -> None:
    """Show whether the embedded database runs, and where it lies."""
    from dataclasses import asdict

    from nbtl_search.api import default_home
    from nbtl_search.study import embedded

    found = asdict(embedded.status(home or default_home()))
    if as_json:
        echo_json(found)
    else:
        click.echo("\n".join(f"{key:12} {value}" for key, value in found.items()))


@db_command.command("upgrade")
@storage_option
def upgrade_command(*, home: Path | None, storage: str | None) -> None:
    """Make the tables, or bring them to the version that this program needs."""
    from nbtl_search.api import default_home
    from nbtl_search.study.storage import connect, create_or_upgrade

    opened = connect(storage, home=home or default_home())
    try:
        create_or_upgrade(opened)
    finally:
        opened.close()
    click.echo("the database is up to date")
