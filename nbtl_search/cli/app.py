"""The group of all commands; a command's module is imported when that command is used."""

import difflib
from importlib import import_module
from typing import Final

import click
from click.shell_completion import get_completion_class

# Of each command its module, and its line in the list of commands.
_COMMANDS: Final = {
    "create": ("search", "Create a study: what to search, on which images."),
    "prepare": ("search", "Decode a dataset once, for all workers of this machine."),
    "doctor": ("machine", "Check this machine and the database."),
    "preflight": ("machine", "Say what a study will cost on this hardware."),
    "launch": ("training", "Run workers on this machine until the study is over."),
    "worker": ("training", "Run one worker: train trials until the study is over."),
    "status": ("search", "Show where a study stands."),
    "list": ("search", "List all studies."),
    "best": ("search", "Print the best recipe as TOML, for `train`."),
    "dashboard": ("search", "Show all studies in a browser."),
    "finalize": ("results", "Confirm the best recipes over several seeds; read the test set once."),
    "ablate": ("results", "Find out which hyperparameters of the best recipe are needed."),
    "report": ("results", "Write what a study found as one HTML page."),
    "export": ("results", "Write the final model for timm, or as ONNX."),
    "predict": ("predictions", "Classify images with an exported model."),
    "diagnose": (
        "diagnosis",
        "Measure how well the weights fit the images, and what to try first.",
    ),
    "reproduce": ("results", "Repeat the paper's tables for one of its datasets."),
    "pause": ("search", "Checkpoint all trials and wait."),
    "resume": ("search", "Go on with a paused or stopped study."),
    "stop": ("search", "Checkpoint all trials and end the workers."),
    "extend": ("search", "Give a study more trials, epochs or time."),
    "fork": ("search", "Make a study like another, and keep what can be compared."),
    "cancel": ("search", "End one trial that is wanted no more."),
    "delete": ("search", "Delete a study and its trials."),
    "train": ("training", "Train one recipe, without a study."),
    "demo": ("demo", "Search a small task from start to end, in minutes."),
    "db": ("database", "Start, stop, serve, back up, restore, inspect or upgrade the database."),
    "logs": ("machine", "Show what workers wrote."),
    "notify": ("machine", "Send a signed message when a study finishes, stalls or fails."),
    "clean": ("machine", "Remove checkpoints and logs that nobody needs any more."),
    "completion": ("app", "Print the completion script of a shell."),
}
# For those who make this program: in no list, but with a --help of its own.
_HIDDEN: Final = {"pretrain": "demo"}


class LazyGroup(click.Group):
    """A group whose help needs no command's module."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order of use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command."""
        if cmd_name in _HIDDEN:
            module_name = _HIDDEN[cmd_name]
        elif cmd_name in _COMMANDS:
            module_name, _ = _COMMANDS[cmd_name]
        else:
            return None
        module = import_module(f"nbtl_search.cli.{module_name}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        if args and args[0] not in _COMMANDS | _HIDDEN and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(_COMMANDS)}"
            message = f"no command {args[0]!r}; {hint}"
            raise click.UsageError(message, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in _COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="nbtl-search", message="%(prog)s %(version)s")
def app() -> None:
    """Find out how to fine-tune a pre-trained network on your images.

    \b
    nbtl-search create --dataset ./my-folder
    nbtl-search launch my-folder
    nbtl-search status my-folder
    nbtl-search dashboard
    """


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(*, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    nbtl-search completion bash > ~/.local/share/bash-completion/completions/nbtl-search
    """
    found = get_completion_class(shell)
    assert found is not None, "click knows the three"  # noqa: S101
    click.echo(found(app, {}, "nbtl-search", "_NBTL_SEARCH_COMPLETE").source())
