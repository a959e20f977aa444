"""Searches as functions: make a study, run its workers, look at it, steer it.

Each function is a method of `Workspace`, for who needs no object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtl_search.spec.diagnosis import POOLED
from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from nbtl_search.data.prepared import Prepared
    from nbtl_search.ledger.cancellation import Cancelled
    from nbtl_search.ledger.records import TrialRecord
    from nbtl_search.reports.terminal.status import StatusReport
    from nbtl_search.spec import Budget, Diagnosis, Fork, Progress, Recipe, StageProgress, StudySpec
    from nbtl_search.spec.verdict import Estimate
    from nbtl_search.study.store import Study, StudySummary
    from nbtl_search.workspace.studies import Wish
    from nbtl_search.workspace.workers import Queued


def draft(
    dataset: str | None = None,
    *,
    study: Path | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
) -> StudySpec:
    """Return the specification that `create` would store, without looking at data or weights.

    Args:
        dataset: a shipped study's name, or a folder of images.
        study: a TOML file instead.
        name: of the study; by default that of the dataset or the file's.
        settings: `dotted.key=value`, applied last.

    Raises:
        SpecError: neither or both are given, or something in them is not valid.
    """
    from nbtl_search.workspace import drafts

    return drafts.draft(dataset, study=study, name=name, settings=settings)


def create(
    dataset: str | None = None,
    *,
    study: Path | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
    start: Sequence[str] = (),
    advise: bool | None = None,
    home: Path | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> StudySpec:
    """Check data and weights, and store a new study; the same one again changes nothing.

    Args:
        dataset: a shipped study's name, or a folder of images.
        study: a TOML file instead.
        name: of the study; by default that of the dataset or the file's.
        settings: `dotted.key=value`, applied last.
        start: regimes of the survey whose starting recipes are tried after the known ones:
            larger-similar, larger-dissimilar, smaller-similar, smaller-dissimilar.
        advise: start from what `diagnose` measured and from finished studies; by default where
            measures of these images and weights exist.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        progress: called with the number of images decoded and of all.
        checking: called with the number of methods tried on the weights and of all.

    Raises:
        SpecError: the specification is not valid, or advice is wanted and nothing was measured.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has another specification.
        StorageError: the database refuses.
    """
    return Workspace(home, storage).studies.create(
        dataset,
        study=study,
        name=name,
        settings=settings,
        start=start,
        advise=advise,
        progress=progress,
        checking=checking,
    )


def fork(
    name: str,
    new: str,
    *,
    settings: Sequence[str] = (),
    home: Path | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> tuple[StudySpec, Fork]:
    """Store a study like another with settings changed, and what is comparable of its trials.

    Where all that decides an accuracy is equal but for the dials, the new study's sampler starts
    from the trials inside the new space; they cost no budget and are not among its results.
    Elsewhere the source's three best recipes are tried first. The same fork again changes nothing.

    Args:
        name: of the source: a search, whether it runs, is over, paused or stopped.
        new: the new study's name.
        settings: `dotted.key=value`, in the place of the source's.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        progress: called with the number of images decoded and of all.
        checking: called with the number of methods tried on the weights and of all.

    Returns:
        The new study's specification, and what it took over.

    Raises:
        StudyNotFoundError: no such source.
        SpecError: a setting is not valid, or the source is of final runs.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of the new name has another specification, or is no such fork.
        StorageError: the database refuses.
    """
    return Workspace(home, storage).studies.fork(
        name, new, settings=settings, progress=progress, checking=checking
    )


def diagnose(
    target: str,
    *,
    layer: str = POOLED,
    source: Path | str | None = None,
    min_source_images: int = 200,
    save_source: Path | str | None = None,
    random_epochs: int | None = None,
    no_random: bool = False,
    settings: Sequence[str] = (),
    home: Path | None = None,
    storage: str | None = None,
    progress: StageProgress | None = None,
) -> Diagnosis:
    """Measure how well the pre-trained weights fit the images, and keep it in the database.

    Args:
        target: a study of the database, a shipped study's name, or a folder of images.
        layer: 'pooled' (what enters the classifier), or a block's number from the input.
        source: an .npz file of source prototypes, or a folder of source images by class.
        min_source_images: source classes with fewer are left out.
        save_source: an .npz file to write the prototypes of a folder of source images to.
        random_epochs: of the training from random weights; by default as many as a trial has, and
            at least 600 updates.
        no_random: leave that training out; so it is for a block, which gives no advice, unless
            epochs are asked for.
        settings: `dotted.key=value`, applied to the study or the shipped one.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        progress: called with (stage, done, in all).

    Raises:
        SpecError: the target is unknown, a setting is not valid, or the weights are random.
        DataError: images or source prototypes cannot be had, or do not fit.
        WeightsError: the weights cannot be had, or are not those of the source prototypes.
        StorageError: the database refuses.
    """
    return Workspace(home, storage).diagnoses.measure(
        target,
        layer=layer,
        source=source,
        min_source_images=min_source_images,
        save_source=save_source,
        random_epochs=random_epochs,
        no_random=no_random,
        settings=settings,
        progress=progress,
    )


def prepare(
    dataset: str,
    *,
    settings: Sequence[str] = (),
    skip_corrupt: bool = False,
    home: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Decode a dataset once, for every worker of this machine.

    Raises:
        DataError: the images cannot be had, or some are damaged and `skip_corrupt` is False.
    """
    return Workspace(home).studies.prepare(
        dataset, settings=settings, skip_corrupt=skip_corrupt, progress=progress
    )


def launch(
    name: str,
    *,
    workers: int | None = None,
    gpus: Sequence[str] | None = None,
    slots_per_gpu: int = 1,
    home: Path | None = None,
    storage: str | None = None,
    options: Sequence[str] = (),
    on_tick: Callable[[Study], None] | None = None,
) -> None:
    """Run workers on this machine until the study is over: one per GPU, or as many as fit the CPU.

    Args:
        name: of the study.
        workers: how many; by default one per GPU, or one per core (see
            `launchers.local`).
        gpus: their ids; by default all visible ones.
        slots_per_gpu: how many workers share a GPU.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        options: further options of `nbtl-search worker`.
        on_tick: called about once a second.

    Raises:
        StudyNotFoundError: no such study.
        NbtlError: a worker refused to start, or kept dying.
    """
    Workspace(home, storage).workers.launch(
        name,
        workers=workers,
        gpus=gpus,
        slots_per_gpu=slots_per_gpu,
        options=options,
        on_tick=on_tick,
    )


def launch_on_slurm(
    name: str,
    settings: Path,
    *,
    workers: int | None = None,
    dry_run: bool = False,
    home: Path | None = None,
    storage: str | None = None,
    options: Sequence[str] = (),
) -> Queued:
    """Bring the number of the study's workers in the queue to `workers`.

    More are submitted as one array; too many are ended, waiting ones first; a running one writes
    a checkpoint and releases its trial.

    Args:
        name: of the study.
        settings: a TOML file, see `workers/slurm.toml`.
        workers: how many are wanted in all; by default as the settings say.
        dry_run: return the batch script of all of them, submit and write nothing.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        options: further options of `nbtl-search worker`.

    Raises:
        SpecError: the settings are not valid.
        StudyNotFoundError: no such study.
        StorageError: the nodes could not reach the database.
        NbtlError: there is no Slurm here, or it refuses.
    """
    return Workspace(home, storage).workers.launch_on_slurm(
        name, settings, workers=workers, dry_run=dry_run, options=options
    )


def work(
    name: str,
    *,
    home: Path | None = None,
    storage: str | None = None,
    cache: Path | None = None,
    beat_s: float = 10.0,
    wait_s: float = 0.0,
    free_gb: float = 1.0,
    quota_gb: float | None = None,
    keep_best: int = 0,
    metrics_port: int | None = None,
) -> None:
    """Be one worker: train trials of the study and its final runs until all are over, or SIGTERM.

    Args:
        name: of the study.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        cache: folder for decoded images, on a disk of this node; by default below home.
        beat_s: seconds between heartbeats; a trial is taken over after six without one.
        wait_s: how long to wait at the start for a database that does not answer.
        free_gb: take no new trial while the disk of home has less free space.
        quota_gb: take no new trial while the study's checkpoints take more.
        keep_best: of how many of the best trials the last checkpoint is kept.
        metrics_port: serve metrics on this port of loopback.

    Raises:
        StudyNotFoundError: no such study.
        NbtlError: data or weights of the study cannot be had on this machine.
    """
    Workspace(home, storage).workers.work(
        name,
        cache=cache,
        beat_s=beat_s,
        wait_s=wait_s,
        free_gb=free_gb,
        quota_gb=quota_gb,
        keep_best=keep_best,
        metrics_port=metrics_port,
    )


def status(
    name: str, *, home: Path | None = None, storage: str | None = None
) -> tuple[StatusReport, list[TrialRecord]]:
    """Return where the study stands, and its trials.

    Raises:
        StudyNotFoundError: no such study.
    """
    return Workspace(home, storage).studies.status(name)


def studies(*, home: Path | None = None, storage: str | None = None) -> list[StudySummary]:
    """Return all studies of the database."""
    return Workspace(home, storage).studies.all()


def best(
    name: str,
    *,
    trial: int | None = None,
    home: Path | None = None,
    storage: str | None = None,
) -> tuple[Recipe, TrialRecord, Estimate | None]:
    """Return the recommended recipe, or that of the trial with this number.

    Returns:
        The recipe, the first trial that had it, and what it gives on average over seeds as far as
        its runs tell, in percent; None for a trial that did not run to its end or is a repeat.

    Raises:
        StudyNotFoundError: no such study, or no such trial, or none has ended yet.
    """
    return Workspace(home, storage).studies.best(name, trial=trial)


def dashboard(
    study: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    writable: bool = False,
    home: Path | None = None,
    storage: str | None = None,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve the dashboard until SIGINT or SIGTERM.

    Args:
        study: whose page `ready` is told; by default the list of all.
        host: address to listen on.
        port: to listen on; 0 for any free one.
        writable: whether notes may be edited there; nothing else ever may.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        ready: called with the address once it answers.

    Raises:
        StudyNotFoundError: no such study.
    """
    Workspace(home, storage).studies.dashboard(
        study, host=host, port=port, writable=writable, ready=ready
    )


def steer(name: str, wish: Wish, *, home: Path | None = None, storage: str | None = None) -> None:
    """Pause, resume or stop a study, or the final runs that it is at, with the next heartbeat.

    Raises:
        StudyNotFoundError: no such study.
    """
    Workspace(home, storage).studies.steer(name, wish)


def extend(
    name: str,
    *,
    n_trials: int | None = None,
    epochs: int | None = None,
    gpu_h: float | None = None,
    deadline: datetime | None = None,
    home: Path | None = None,
    storage: str | None = None,
) -> Budget:
    """Give a study another budget, whether it runs or is over; return it.

    Args:
        name: of the study.
        n_trials: trials in all; None leaves a limit as it is.
        epochs: epochs that all trials together are granted.
        gpu_h: hours of all workers together.
        deadline: when the search ends; without a time zone, local time.
        home: see the module.
        storage: see the module.

    Raises:
        StudyNotFoundError: no such study.
        SpecError: no limit is given, one is below what was spent, or final runs are at work.
    """
    return Workspace(home, storage).studies.extend(
        name,
        n_trials=n_trials,
        epochs=epochs,
        gpu_h=gpu_h,
        deadline=deadline,
    )


def cancel(
    name: str, trial: int, *, home: Path | None = None, storage: str | None = None
) -> Cancelled:
    """End one trial of a search that is wanted no more, with what it has trained.

    One that waits or is paused ends now, one that runs with the next heartbeat of its worker.

    Args:
        name: of the study.
        trial: its number.
        home: see the module.
        storage: see the module.

    Raises:
        StudyNotFoundError: no such study, or no such trial.
        SpecError: the trial has ended, or is the default recipe's.
    """
    return Workspace(home, storage).studies.cancel(name, trial)


def delete(name: str, *, home: Path | None = None, storage: str | None = None) -> None:
    """Delete a study with all its trials.

    Raises:
        StudyNotFoundError: no such study.
    """
    Workspace(home, storage).studies.delete(name)
