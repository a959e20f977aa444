"""The command line: parse, import what is needed, make one call."""

import sys

import click

from nbtl_search.errors import EXIT_CODE, NbtlError


def main() -> None:
    """Run the program; what the user can fix is one line on stderr and exit code 2."""
    from nbtl_search.cli.app import app

    try:
        code = app.main(prog_name="nbtl-search", standalone_mode=False)
    except NbtlError as error:
        _refuse(" ".join(str(error).split()))
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "nbtl-search"
        _refuse(f"{error.format_message()} (see: {command} --help)")
    except click.ClickException as error:
        _refuse(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(EXIT_CODE)
