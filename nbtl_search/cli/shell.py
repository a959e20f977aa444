"""Completion of commands and options in a shell."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(*, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    nbtl-search completion bash > ~/.local/share/bash-completion/completions/nbtl-search
    """
    from nbtl_search.cli.app import app

    found = get_completion_class(shell)
    assert found is not None, "click knows the three"  # noqa: S101
    click.echo(found(app, {}, "nbtl-search", "_NBTL_SEARCH_COMPLETE").source())
