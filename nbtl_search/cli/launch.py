"""Commands that run workers."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from nbtl_search.cli.options import json_option, storage_option
from nbtl_search.cli.output import echo_json, search_progress, waiting

if TYPE_CHECKING:
    from nbtl_search.workspace.workers import Queued


@click.command("launch")
@click.argument("study")
@click.option("--workers", type=click.IntRange(min=0), help="By default one per GPU or core.")
@click.option("--gpus", help="Ids of the GPUs to use, such as 0,1; by default all.")
@click.option(
    "--slots-per-gpu",
    metavar="N|auto",
    default="1",
    show_default=True,
    help="Workers that share a GPU; auto measures how many give the most images per second.",
)
@click.option("--beat-s", type=click.FloatRange(min=0.05), help="Seconds between heartbeats.")
@click.option(
    "--preflight/--no-preflight",
    default=True,
    show_default=True,
    help="Before the first trial, train a few batches and say what the study will cost.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.option(
    "--slurm",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TOML",
    help="Submit the workers to Slurm, as this file says; --workers then is how many there shall "
    "be in all, and 0 ends them.",
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
    study: str,
    workers: int | None,
    gpus: str | None,
    slots_per_gpu: str,
    preflight: bool,
    beat_s: float | None,
    quiet: bool,
    slurm: Path | None,
    kubernetes: bool,
    image: str | None,
    dry_run: bool,
    as_json: bool,
    home: Path | None,
    storage: str | None,
) -> None:
    """Run workers for STUDY on this machine until it is over; Ctrl-C checkpoints and ends them.

    \b
    nbtl-search launch dtd
    nbtl-search launch dtd --workers 2
    nbtl-search launch dtd --slurm workers/slurm.toml --workers 8
    nbtl-search launch dtd --kubernetes --workers 8
    """
    from nbtl_search import api

    options = [] if beat_s is None else ["--beat-s", str(beat_s)]
    if kubernetes:
        _refuse_with("--kubernetes", gpus=gpus, slurm=slurm)
        _say_manifest(study, workers=workers, image=image)
        return
    if slurm is not None:
        _refuse_with("--slurm", gpus=gpus)
        with waiting("asking the queue"):
            done = api.launch_on_slurm(
                study, slurm, workers=workers, dry_run=dry_run, home=home, storage=storage,
                options=options,
            )  # fmt: skip
        _say_queued(study, done, as_json=as_json)
        return
    if workers == 0 or dry_run or as_json:
        message = "--workers 0, --dry-run and --json go with --slurm"
        raise click.UsageError(message)
    where: Where = {"home": home, "storage": storage}
    n_slots = _slots(study, slots_per_gpu, where)
    if preflight and not quiet:
        _say_price(study, workers, n_slots, where)
    with search_progress(quiet=quiet) as tick:
        api.launch(
            study,
            workers=workers,
            gpus=None if gpus is None else gpus.split(","),
            slots_per_gpu=n_slots,
            home=home,
            storage=storage,
            options=options,
            on_tick=tick,
        )


class Where(TypedDict):
    """Where the database and all files are."""

    home: Path | None
    storage: str | None


def _slots(study: str, wanted: str, where: Where) -> int:
    """Return how many workers share a GPU; measure it where that is wanted."""
    from nbtl_search import api
    from nbtl_search.cli.machine import say_packed
    from nbtl_search.launchers import local

    if wanted != "1" and not local.gpus():
        message = "--slots-per-gpu needs a GPU, and there is none here; --workers is a CPU's way"
        raise click.UsageError(message)
    if wanted != "auto":
        if not wanted.isdigit() or int(wanted) < 1:
            message = f"--slots-per-gpu takes a number from 1 or auto, got {wanted!r}"
            raise click.UsageError(message)
        return int(wanted)
    click.echo("trying several trainings on one GPU", err=True)
    return api.best_slots(say_packed(api.packed(study, **where)))


def _say_price(study: str, workers: int | None, n_slots: int, where: Where) -> None:
    """Say what the study will cost, once: before its first trial."""
    from nbtl_search import api
    from nbtl_search.cli.machine import say_price

    _, trials = api.status(study, **where)
    if trials:
        return
    with waiting("training a few batches"):
        found = api.preflight(study, workers=workers, slots_per_gpu=n_slots, **where)
    say_price(found)


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
def worker_command(
    *,
    study: str,
    beat_s: float,
    wait_s: float,
    cache: Path | None,
    free_gb: float,
    quota_gb: float | None,
    keep_best: int,
    metrics_port: int | None,
    home: Path | None,
    storage: str | None,
) -> None:
    """Be one worker for STUDY: one trial after the other, until the study is over.

    SIGTERM checkpoints, gives the trial back and exits 0.

    \b
    nbtl-search worker dtd
    """
    from nbtl_search import api

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    api.work(
        study,
        home=home,
        storage=storage,
        cache=cache,
        beat_s=beat_s,
        wait_s=wait_s,
        free_gb=free_gb,
        quota_gb=quota_gb,
        keep_best=keep_best,
        metrics_port=metrics_port,
    )
