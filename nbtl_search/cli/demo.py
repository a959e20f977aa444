"""The command of the demo: what it says while it runs."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from nbtl_search.cli.options import storage_option
from nbtl_search.cli.output import console, counting_progress, decoding_progress, search_progress

_INTERRUPTED = 130


@click.command("demo")
@click.option(
    "--trials", type=click.IntRange(min=4), help="Trials in all; by default the study's 14."
)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--fresh", is_flag=True, help="Delete the study of an earlier demo first.")
@storage_option
def demo_command(
    *, trials: int | None, workers: int, fresh: bool, home: Path | None, storage: str | None
) -> None:
    """Search a small texture task from start to end: no download, no GPU, a few minutes.

    Ctrl-C stops it and loses nothing; the same command goes on, or shows again what it found.

    \b
    nbtl-search demo
    nbtl-search demo --fresh --trials 24
    """
