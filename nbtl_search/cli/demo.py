"""Commands of the demo: search a small task, and pre-train the weights it starts from."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from nbtl_search.cli.options import home_option, storage_option
from nbtl_search.cli.output import (
    DECODING,
    console,
    counting_bar,
    late_progress,
    search_progress,
    validation,
)
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.demo.search import RandomRun
    from nbtl_search.spec import StudySpec

_INTERRUPTED = 130


@click.command("demo")
@click.option(
    "--trials", type=click.IntRange(min=4), help="Trials in all; by default the study's 12."
)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--fresh", is_flag=True, help="Delete the study of an earlier demo first.")
@storage_option
def demo_command(*, workspace: Workspace, trials: int | None, workers: int, fresh: bool) -> None:
    """Search a small texture task from start to end: no download, no GPU, a few minutes.

    Ctrl-C stops it and loses nothing: the same command goes on. When all is done it shows again
    what was found.

    \b
    nbtl-search demo
    nbtl-search demo --fresh --trials 24
    """
    home = shlex.quote(str(workspace.home))
    options = f" --home {home}" if _was_typed("home") else ""
    click.echo("starting; loading torch takes a moment", err=True)
    try:
        _run(workspace, trials=trials, workers=workers, fresh=fresh, options=options)
    except KeyboardInterrupt:
        click.echo(f"stopped, nothing is lost; go on with: nbtl-search demo{options}", err=True)
        sys.exit(_INTERRUPTED)


def _run(
    workspace: Workspace, *, trials: int | None, workers: int, fresh: bool, options: str
) -> None:
    from nbtl_search.demo import search as demo

    screen = console()
    with late_progress(DECODING) as progress:
        spec = demo.create(workspace, trials=trials, fresh=fresh, progress=progress)
    report, trained = workspace.studies.status(spec.name)
    if not trained:
        screen.print(demo.introduction(spec))
    else:
        n_ended = report.complete + report.pruned + report.failed
        screen.print(
            f"The study {spec.name!r} is there already: {n_ended} of {report.n_trials} trials "
            "have ended. (--fresh starts over.)"
        )
    with search_progress(quiet=False) as tick:
        finished = demo.search(workspace, workers=workers, on_tick=tick)
    if not finished:
        raise KeyboardInterrupt
    random = _random_runs(workspace, spec)
    with search_progress(quiet=False) as tick:
        verdict = demo.finalize(workspace, workers=workers, on_tick=tick)
    if verdict.stage != "done":
        raise KeyboardInterrupt
    _, trained = workspace.studies.status(spec.name)
    found = demo.Findings(spec=spec, trials=trained, random=random, verdict=verdict)
    screen.print(demo.conclusion(found))
    click.echo(f"\n{demo.next_steps(options)}")


def _was_typed(name: str) -> bool:
    """Tell an option of the command line from one that the environment gave."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _random_runs(workspace: Workspace, spec: "StudySpec") -> "list[RandomRun]":
    from nbtl_search.demo import search as demo

    with _bar("the same from random weights") as progress:
        return list(demo.random_runs(workspace, spec, progress=progress))


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a callback (done, total) with a bar on stderr."""
    with counting_bar() as bar:
        task = bar.add_task(f"epochs: {title}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@click.command("pretrain")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The .safetensors file to write.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Instead of those of the shipped weights."
)
@home_option
def pretrain_command(*, workspace: Workspace, output: Path, seed: int, epochs: int | None) -> None:
    """Pre-train the weights that ship with the program again: about ten minutes on one core.

    The same seed gives the same file on the same kind of processor.

    \b
    nbtl-search pretrain --seed 0 -o test_resnet.safetensors
    """
    from nbtl_search.demo.pretraining import pretrain, source_recipe

    recipe = source_recipe(seed=seed)
    if epochs is not None:
        recipe = recipe.replace(train=recipe.train.replace(epochs=epochs))
    n_images, started_s = 0, time.process_time()
    with late_progress(DECODING) as progress:
        for epoch in pretrain(recipe, output, home=workspace.home, progress=progress):
            n_images += epoch.n_images
            click.echo(
                f"epoch {epoch.epoch:3d}/{recipe.train.epochs}  loss {epoch.train_loss:.4f}  "
                f"{validation(epoch)}  {n_images} images, "
                f"{time.process_time() - started_s:.0f} s of processor time"
            )
    click.echo(f"wrote {output}")
