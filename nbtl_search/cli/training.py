"""Commands that train: a study on this machine or a cluster, one worker, or a single recipe."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nbtl_search.cli.options import (
    home_option,
    json_option,
    launch_options,
    settings_option,
    storage_option,
    worker_options,
)
from nbtl_search.cli.output import (
    DECODING,
    echo_json,
    late_stages,
    search_progress,
    validation,
    waiting,
)
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from nbtl_search.workspace.workers import Queued


@click.command("launch")
@click.argument("study")
@click.option("--workers", type=click.IntRange(min=0), help="By default one per GPU or core.")
@click.option(
    "--slots-per-gpu",
    metavar="N|auto",
    default="1",
    show_default=True,
    help="Workers that share a GPU; auto measures how many give the most images per second.",
)
@launch_options
@click.option(
    "--preflight/--no-preflight",
    default=True,
    show_default=True,
    help="Before the first trial, train a few batches and say what the study will cost.",
)
@click.option(
    "--slurm",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TOML",
    help="Submit the workers to Slurm, as this file says; --workers is then their number in "
    "all, and 0 ends them.",
)
@click.option(
    "--kubernetes", is_flag=True, help="Print a Kubernetes manifest of --workers workers instead."
)
@click.option("--image", help="Of the manifest's workers, see workers/Dockerfile.")
@click.option("--dry-run", is_flag=True, help="With --slurm: print the batch script, do nothing.")
@json_option
@storage_option
def launch_command(
    *,
    workspace: Workspace,
    study: str,
    workers: int | None,
    gpus: list[str] | None,
    slots_per_gpu: str,
    preflight: bool,
    beat_s: float | None,
    quiet: bool,
    slurm: Path | None,
    kubernetes: bool,
    image: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run workers for STUDY on this machine until it is over; Ctrl-C checkpoints and ends them.

    \b
    nbtl-search launch dtd
    nbtl-search launch dtd --workers 2
    nbtl-search launch dtd --slurm workers/slurm.toml --workers 8
    nbtl-search launch dtd --kubernetes --workers 8
    """
    options = worker_options(beat_s)
    if kubernetes:
        _refuse_with("--kubernetes", gpus=gpus, slurm=slurm)
        _say_manifest(study, workers=workers, image=image)
        return
    if slurm is not None:
        _refuse_with("--slurm", gpus=gpus)
        with waiting("asking the queue"):
            done = workspace.workers.launch_on_slurm(
                study, slurm, workers=workers, dry_run=dry_run, options=options
            )
        _say_queued(study, done, as_json=as_json)
        return
    if workers == 0 or dry_run or as_json:
        message = "--workers 0, --dry-run and --json go with --slurm"
        raise click.UsageError(message)
    n_slots = _slots(workspace, study, slots_per_gpu)
    if preflight and not quiet:
        _say_cost_estimate(workspace, study, workers, n_slots)
    with search_progress(quiet=quiet) as tick:
        workspace.workers.launch(
            study,
            workers=workers,
            gpus=gpus,
            slots_per_gpu=n_slots,
            options=options,
            on_tick=tick,
        )


def _slots(workspace: Workspace, study: str, wanted: str) -> int:
    """Return how many workers share a GPU; `auto` measures it."""
    from nbtl_search.cli.machine import say_packed
    from nbtl_search.launchers import local

    if wanted != "1" and not local.gpus():
        message = "--slots-per-gpu needs a GPU, and there is none here; on a CPU, give --workers"
        raise click.UsageError(message)
    if wanted != "auto":
        if not wanted.isdigit() or int(wanted) < 1:
            message = f"--slots-per-gpu takes a number from 1 or auto, got {wanted!r}"
            raise click.UsageError(message)
        return int(wanted)
    from nbtl_search.workspace.machine import best_slots

    click.echo("trying several trainings on one GPU", err=True)
    return best_slots(say_packed(workspace.machine.packed(study)))


def _say_cost_estimate(workspace: Workspace, study: str, workers: int | None, n_slots: int) -> None:
    """Say what the study will cost, once: before its first trial."""
    from nbtl_search.cli.machine import say_cost_estimate

    if workspace.studies.have_trials(study):
        return
    with waiting("training a few batches"):
        found = workspace.machine.preflight(study, workers=workers, slots_per_gpu=n_slots)
    say_cost_estimate(found)


def _say_manifest(study: str, *, workers: int | None, image: str | None) -> None:
    from nbtl_search.launchers import kubernetes

    if not workers:
        message = "--kubernetes needs --workers N, from 1"
        raise click.UsageError(message)
    text = kubernetes.manifest(study, workers=workers, image=image or kubernetes.IMAGE)
    click.echo(text, nl=False)


def _refuse_with(option: str, **others: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]
    if given:
        message = f"{' and '.join(given)} cannot go with {option}"
        raise click.UsageError(message)


def _say_queued(study: str, done: "Queued", *, as_json: bool) -> None:
    if as_json:
        echo_json(asdict(done))
        return
    if done.script is not None:
        click.echo(done.script)
        return
    if done.job_id is not None:
        click.echo(f"submitted job {done.job_id}: {done.n_after - done.n_before} workers")
    for task in done.cancelled:
        click.echo(f"ended task {task}")
    click.echo(
        f"{done.n_after} workers in the queue (before: {done.n_before})\n"
        f"next: nbtl-search status {study}; nbtl-search logs {study}; logs are in {done.logs}"
    )


@click.command("worker")
@click.argument("study")
@click.option(
    "--beat-s",
    type=click.FloatRange(min=0.05),
    default=10.0,
    show_default=True,
    help="Seconds between heartbeats; a trial is taken over after six without one.",
)
@click.option(
    "--wait-s",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds to wait at the start for a database that does not answer.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="NBTL_CACHE",
    show_envvar=True,
    help="Folder for decoded images, on a disk of this node; by default in --home.",
)
@click.option(
    "--free-gb",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Take no new trial while the disk of --home has less free space.",
)
@click.option(
    "--quota-gb",
    type=click.FloatRange(min=0),
    help="Take no new trial while the study's checkpoints take more space.",
)
@click.option(
    "--keep-best",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of how many of the best trials the last checkpoint is kept.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(min=0, max=65535),
    help="Serve metrics for Prometheus on this port of 127.0.0.1; 0 for any free one.",
)
@storage_option
def worker_command(*, workspace: Workspace, study: str, **settings: Any) -> None:
    """Be one worker for STUDY: one trial after the other, until the study is over.

    SIGTERM checkpoints, releases the trial and exits 0.

    \b
    nbtl-search worker dtd
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    workspace.workers.work(study, **settings)  # each option has the name of an argument


@click.command("train")
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--checkpoints",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to resume from, and to write to after each epoch.",
)
@settings_option
@home_option
@json_option
def train_command(
    *,
    workspace: Workspace,
    recipe: Path,
    checkpoints: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train RECIPE, a TOML file as `best` prints it, and show its epochs.

    \b
    nbtl-search best dtd > recipe.toml
    nbtl-search train recipe.toml --set train.seed=1
    """
    from nbtl_search.network.allocator import keep_freed_memory
    from nbtl_search.spec import Recipe, best_epoch, read_toml, with_settings

    keep_freed_memory()
    parsed = Recipe.parse(with_settings(read_toml(recipe), settings))
    epochs = []
    with late_stages() as tick:
        for epoch in workspace.models.train(
            parsed,
            checkpoints=checkpoints,
            progress=partial(tick, DECODING),
            measuring=partial(tick, "measuring the source network"),
        ):
            epochs.append(epoch)
            if not as_json:
                click.echo(
                    f"epoch {epoch.epoch:3d}/{parsed.train.epochs}  loss {epoch.train_loss:.4f}  "
                    f"{validation(epoch)}  {epoch.seconds:.1f} s"
                )
    best = best_epoch(epochs)
    if as_json:
        echo_json(
            {
                "best": None if best is None else best.plain(),
                "last": epochs[-1].plain(),
                "epochs": [e.plain() for e in epochs],
            }
        )
    elif best is not None:
        click.echo(f"best: epoch {best.epoch}, {validation(best)}")
