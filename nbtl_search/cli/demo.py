"""The command of the demo: what it says while it runs."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from nbtl_search.cli.options import storage_option
from nbtl_search.cli.output import DECODING, console, counting_bar, late_progress, search_progress

if TYPE_CHECKING:
    from nbtl_search.demo.demo import RandomRun
    from nbtl_search.spec import StudySpec

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

    Ctrl-C stops it and loses nothing: the same command goes on. When all is done it shows again
    what was found.

    \b
    nbtl-search demo
    nbtl-search demo --fresh --trials 24
    """
    options = f" --home {shlex.quote(str(home))}" if _was_typed("home") else ""
    click.echo("starting; loading torch takes a moment", err=True)
    try:
        _run(
            trials=trials, workers=workers, fresh=fresh, home=home, storage=storage, options=options
        )
    except KeyboardInterrupt:
        click.echo(f"stopped, nothing is lost; go on with: nbtl-search demo{options}", err=True)
        sys.exit(_INTERRUPTED)


def _run(
    *,
    trials: int | None,
    workers: int,
    fresh: bool,
    home: Path | None,
    storage: str | None,
    options: str,
) -> None:
    from nbtl_search import api
    from nbtl_search.demo import demo

    home, screen = home or api.default_home(), console()
    with late_progress(DECODING) as progress:
        spec = demo.create(
            trials=trials, fresh=fresh, home=home, storage=storage, progress=progress
        )
    report, found = api.status(spec.name, home=home, storage=storage)
    if not found:
        screen.print(demo.introduction(spec))
    else:
        n_ended = report.complete + report.pruned + report.failed
        screen.print(
            f"The study {spec.name!r} is there already: {n_ended} of {report.n_trials} trials "
            "have ended. (--fresh begins anew.)"
        )
    with search_progress(quiet=False) as tick:
        finished = demo.search(workers=workers, home=home, storage=storage, on_tick=tick)
    if not finished:
        raise KeyboardInterrupt
    random = _random_runs(spec, home)
    with search_progress(quiet=False) as tick:
        verdict = demo.finalize(workers=workers, home=home, storage=storage, on_tick=tick)
    if verdict.stage != "done":
        raise KeyboardInterrupt
    _, found = api.status(spec.name, home=home, storage=storage)
    outcome = demo.Outcome(spec=spec, trials=found, random=random, verdict=verdict)
    screen.print(demo.conclusion(outcome))
    click.echo(f"\n{demo.next_steps(options)}")


def _was_typed(name: str) -> bool:
    """Tell an option of the command line from one that the environment gave."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _random_runs(spec: "StudySpec", home: Path) -> "list[RandomRun]":
    from nbtl_search.demo import demo

    with _bar("the same from random weights") as progress:
        return list(demo.random_runs(spec, home=home, progress=progress))


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a callback (done, total) with a bar on stderr."""
    with counting_bar() as bar:
        task = bar.add_task(f"epochs: {title}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
