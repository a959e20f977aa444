"""The group of all commands; a command's module is imported when that command is used."""

import difflib
from importlib import import_module

import click

_PLACES = {
    "create": "search",
    "prepare": "search",
    "doctor": "machine",
    "preflight": "machine",
    "launch": "launch",
    "worker": "launch",
    "status": "search",
    "list": "search",
    "best": "search",
    "dashboard": "search",
    "finalize": "results",
    "report": "results",
    "export": "results",
    "predict": "predict",
    "diagnose": "diagnose",
    "reproduce": "results",
    "pause": "search",
    "resume": "search",
    "stop": "search",
    "delete": "search",
    "train": "single",
    "demo": "demo",
    "db": "database",
    "logs": "machine",
    "notify": "machine",
    "clean": "machine",
    "completion": "shell",
}
# For who makes this program, not for who uses it: in no list, but with a --help of its own.
_HIDDEN = {"pretrain": "single"}
_SHORT = {
    "create": "Create a study: what to search, on which images.",
    "prepare": "Decode a dataset once, for all workers of this machine.",
    "doctor": "Check this machine and the database.",
    "preflight": "Say what a study will cost on this hardware.",
    "launch": "Run workers on this machine until the study is over.",
    "worker": "Be one worker: train trials until the study is over.",
    "status": "Show where a study stands.",
    "list": "List all studies.",
    "best": "Print the best recipe as TOML, for `train`.",
    "dashboard": "Show all studies in a browser.",
    "finalize": "Confirm the best recipes over several seeds; read the test images once.",
    "report": "Write what a study found as one HTML page.",
    "export": "Write the final model for timm, or as ONNX.",
    "predict": "Classify images with an exported model.",
    "diagnose": "Measure how well the weights fit the images, and what to try first.",
    "reproduce": "Repeat the paper's tables for one of its datasets.",
    "pause": "Checkpoint all trials and wait.",
    "resume": "Go on with a paused or stopped study.",
    "stop": "Checkpoint all trials and end the workers.",
    "delete": "Delete a study and its trials.",
    "train": "Train one recipe, without a study.",
    "demo": "Search a small task from start to end, in minutes.",
    "db": "Start, stop, serve, back up, restore, inspect or upgrade the database.",
    "logs": "Show what workers wrote.",
    "notify": "Send a signed message when a study finishes, stalls or fails.",
    "clean": "Remove checkpoints and logs that nobody needs any more.",
    "completion": "Print the completion script of a shell.",
}


class LazyGroup(click.Group):
    """A group whose help needs no command's module."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order of use."""
        return list(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command."""
        place = (_PLACES | _HIDDEN).get(cmd_name)
        if place is None:
            return None
        module = import_module(f"nbtl_search.cli.{place}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        if args and args[0] not in _PLACES | _HIDDEN and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _PLACES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(_PLACES)}"
            message = f"no command {args[0]!r}; {hint}"
            raise click.UsageError(message, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_SHORT.items()))


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
