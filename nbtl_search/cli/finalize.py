"""The command that turns a search into a result."""

from pathlib import Path

import click

from nbtl_search.cli.options import json_option, storage_option
from nbtl_search.cli.output import console, echo_json, search_progress


@click.command("finalize")
@click.argument("study")
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    help="Best trials of the search to try again beside the default; by default 3.",
)
@click.option(
    "--confirm-seeds",
    type=click.IntRange(min=2),
    help="Runs of each, judged on validation; by default 4.",
)
@click.option(
    "--test-seeds",
    type=click.IntRange(min=2),
    help="Runs of winner and default, judged on test; by default 4.",
)
@click.option(
    "--again", metavar="REASON", help="Read the test images once more; the reason is recorded."
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="By default one per GPU or core; 0 leaves it to workers on other machines.",
)
@click.option("--gpus", help="Ids of the GPUs to use, such as 0,1; by default all.")
@click.option("--beat-s", type=click.FloatRange(min=0.05), help="Seconds between heartbeats.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@storage_option
@json_option
def finalize_command(
    *,
    study: str,
    candidates: int | None,
    confirm_seeds: int | None,
    test_seeds: int | None,
    again: str | None,
    workers: int | None,
    gpus: str | None,
    beat_s: float | None,
    quiet: bool,
    home: Path | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Confirm the best recipes of STUDY over several seeds, then read the test images once.

    Its runs are trials like others: they may be killed, and go on with the same command.

    \b
    nbtl-search finalize dtd
    nbtl-search finalize dtd --candidates 2 --confirm-seeds 3
    """
    from dataclasses import asdict

    from nbtl_search import api
    from nbtl_search.reports.terminal.outcome import render

    with search_progress(quiet=quiet) as tick:
        verdict = api.finalize(
            study,
            candidates=candidates,
            confirm_seeds=confirm_seeds,
            test_seeds=test_seeds,
            again=again,
            workers=workers,
            gpus=None if gpus is None else gpus.split(","),
            home=home,
            storage=storage,
            options=[] if beat_s is None else ["--beat-s", str(beat_s)],
            on_tick=tick,
        )
    if as_json:
        echo_json(asdict(verdict))
    else:
        console().print(render(verdict, name=study))
