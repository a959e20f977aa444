"""Commands for the database."""

import shlex
from pathlib import Path

import click

from nbtl_search.cli.options import home_option, json_option, storage_option
from nbtl_search.cli.output import echo_json, waiting
from nbtl_search.workspace.workspace import Workspace


@click.group("db")
def db_command() -> None:
    """Start, stop, serve, back up, restore, inspect or upgrade the database.

    \b
    nbtl-search db status
    nbtl-search db serve --host 10.0.0.5
    nbtl-search db backup studies.backup
    NBTL_STORAGE_FILE=~/url nbtl-search db upgrade
    """


@db_command.command("start")
@home_option
def start_command(*, workspace: Workspace) -> None:
    """Start the embedded database; every command that needs it does so by itself."""
    from nbtl_search.postgres import server

    server.start(workspace.home)
    click.echo("the embedded database is up")


@db_command.command("stop")
@home_option
def stop_command(*, workspace: Workspace) -> None:
    """Stop the embedded database; workers wait for it and go on when it is back."""
    from nbtl_search.postgres import server

    stopped = server.stop(workspace.home)
    click.echo("the embedded database is stopped" if stopped else "it was not running")


@db_command.command("status")
@home_option
@json_option
def status_command(*, workspace: Workspace, as_json: bool) -> None:
    """Show whether the embedded database runs, and where it lies."""
    from dataclasses import asdict

    from nbtl_search.postgres import server

    found = asdict(server.status(workspace.home))
    if as_json:
        echo_json(found)
    else:
        click.echo("\n".join(f"{key:12} {value}" for key, value in found.items()))


@db_command.command("upgrade")
@storage_option
def upgrade_command(*, workspace: Workspace) -> None:
    """Make the tables, or bring them to the version that this program needs."""
    with workspace.open_database_of_any_version():
        pass
    click.echo("the database is up to date")


@db_command.command("serve")
@click.option("--host", help="The address of this machine to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5433, show_default=True)
@click.option(
    "--allow",
    metavar="NETWORK",
    help="Who may connect: 10.0.0.0/16, samehost or samenet; by default the network of --host.",
)
@click.option("--any-interface", is_flag=True, help="Allow --host 0.0.0.0.")
@click.option("--off", is_flag=True, help="Listen on the socket only again.")
@home_option
@json_option
def serve_command(
    *,
    workspace: Workspace,
    host: str | None,
    port: int,
    allow: str | None,
    any_interface: bool,
    off: bool,
    as_json: bool,
) -> None:
    """Let the embedded database listen on an address, for workers of other machines.

    It asks for its password, which is in a file that only you can read. Rows travel unencrypted:
    across a network you do not trust, tunnel the connection (ssh, WireGuard).

    \b
    nbtl-search db serve --host 10.0.0.5
    nbtl-search db serve --off
    """
    from nbtl_search.postgres import address, server

    if off == (host is not None):
        message = "give either --host ADDRESS or --off"
        raise click.UsageError(message)
    wanted = None
    if host is not None:
        wanted = address.choose(host, port=port, allow=allow, any_interface=any_interface)
    file = server.serve(workspace.home, wanted)
    if as_json:
        echo_json({"serves": wanted and f"{wanted.host}:{wanted.port}", "storage_file": file})
    elif wanted is None:
        click.echo("the embedded database listens on its socket only")
    else:
        click.echo(f"the embedded database listens on {wanted.host}:{wanted.port}, {wanted.allow}")
        click.echo(f"for workers: export NBTL_STORAGE_FILE={shlex.quote(str(file))}")


@db_command.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@storage_option
def backup_command(*, workspace: Workspace, file: Path, force: bool) -> None:
    """Write all studies into FILE, while workers run.

    \b
    nbtl-search db backup studies.backup
    """
    with waiting("backing up"):
        size = workspace.backups.write(file, force=force)
    click.echo(f"{file}: {size / 1e6:.1f} MB")


@db_command.command("restore")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Replace the studies in the database; they are lost.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_option
def restore_command(
    *,
    workspace: Workspace,
    file: Path,
    replace: bool,
    yes: bool,
) -> None:
    """Bring the database to the state in FILE; if that fails it stays as it is.

    Workers that run lose their trials, which go on from the last checkpoint at hand.

    \b
    nbtl-search db restore studies.backup
    """
    if replace and not yes:
        click.confirm("all studies in the database will be replaced; go on?", abort=True)
    with waiting("restoring"):
        done = workspace.backups.restore(file, replace=replace)
    click.echo(f"{done.n_studies} studies are back; nbtl-search list")
