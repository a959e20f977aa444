"""Results as functions: from the best trial to a published figure and a model that is used.

Each function is a method of `Workspace`, for who needs no object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtl_search.workspace.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from nbtl_search.exports.export import Export
    from nbtl_search.reports.reproduction import Reproduction
    from nbtl_search.spec import Epoch, Progress, Recipe
    from nbtl_search.spec.ablation import Ablation
    from nbtl_search.spec.verdict import Verdict
    from nbtl_search.workspace.models import Predictions, Which
    from nbtl_search.workspace.results import Format, Tick


def finalize(
    name: str,
    *,
    candidates: int | None = None,
    confirm_seeds: int | None = None,
    test_seeds: int | None = None,
    averages: bool | None = None,
    again: str | None = None,
    workers: int | None = None,
    gpus: Sequence[str] | None = None,
    home: Path | None = None,
    storage: str | None = None,
    options: Sequence[str] = (),
    on_tick: Tick | None = None,
) -> Verdict:
    """Confirm a study's best recipes over several seeds, then read the test images once.

    One that was interrupted goes on; one that has ended is only looked at, unless `again`.

    Args:
        name: of the study, whose search is over or stopped.
        candidates: best trials of the search that are tried again; 3.
        confirm_seeds: runs of each candidate and of the default, judged on validation; 4.
        test_seeds: runs of the winner and of the default, judged on test; 4.
        averages: whether averages of the candidates' weights are candidates too; True.
        again: why the test images may be read once more; stored with the study.
        workers: on this machine, as in `launch`; 0 for none: other machines' workers do it.
        gpus: as in `launch`.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        options: further options of `nbtl-search worker`.
        on_tick: called about once a second with the stage that is being trained.

    Raises:
        SpecError: the search is not over, was finalised otherwise, or its ablation is at work.
        DataError: there are no test images.
        StudyNotFoundError: no such study, or no trial of it ran to its end.
    """
    return Workspace(home, storage).results.finalize(
        name,
        candidates=candidates,
        confirm_seeds=confirm_seeds,
        test_seeds=test_seeds,
        averages=averages,
        again=again,
        workers=workers,
        gpus=gpus,
        options=options,
        on_tick=on_tick,
    )


def ablate(
    name: str,
    *,
    trial: int | None = None,
    seeds: int | None = None,
    output: Path | None = None,
    workers: int | None = None,
    gpus: Sequence[str] | None = None,
    home: Path | None = None,
    storage: str | None = None,
    options: Sequence[str] = (),
    on_tick: Tick | None = None,
) -> Ablation:
    """Find out what each group of a recipe's hyperparameters is worth, over new seeds.

    The recipe, the same without one group at a time, and the default are trained with the same
    seeds and judged on validation; the test images are not opened. One that was interrupted goes
    on; one that has ended is only looked at, unless another recipe or more seeds are asked for.

    Args:
        name: of the study, whose search is over or stopped.
        trial: whose recipe it is; by default the recommended one.
        seeds: runs of each variant at most; 4. All have 2, then those that cannot be told yet.
        output: file for the picture, .svg or .png, or for its numbers, .csv; None for none.
        workers: on this machine, as in `launch`; 0 for none: other machines' workers do it.
        gpus: as in `launch`.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        options: further options of `nbtl-search worker`.
        on_tick: called about once a second with the stage that is being trained.

    Raises:
        SpecError: the search is not over, final runs are at work, the recipe is the default, or
            an ablation of another recipe has not ended.
        StudyNotFoundError: no such study, or no trial of it ran to its end.
        NbtlError: the file cannot be written.
    """
    return Workspace(home, storage).results.ablate(
        name,
        trial=trial,
        seeds=seeds,
        output=output,
        workers=workers,
        gpus=gpus,
        options=options,
        on_tick=on_tick,
    )


def ablation(name: str, *, home: Path | None = None, storage: str | None = None) -> Ablation | None:
    """Return where the latest ablation of a study stands; None if there is none.

    Raises:
        StudyNotFoundError: no such study.
    """
    return Workspace(home, storage).results.ablation(name)


def verdict(name: str, *, home: Path | None = None, storage: str | None = None) -> Verdict | None:
    """Return where the latest finalisation of a study stands; None if there is none.

    Raises:
        StudyNotFoundError: no such study.
    """
    return Workspace(home, storage).results.verdict(name)


def report(
    name: str,
    output: Path | None = None,
    *,
    kind: Format = "html",
    figures: Path | None = None,
    home: Path | None = None,
    storage: str | None = None,
    on_step: Callable[[str, int, int], None] = lambda _what, _done, _all: None,
) -> str:
    """Make the report of a study: one HTML page, or its tables; return its text.

    Args:
        name: of the study, at any time: what is not known yet is not said.
        output: file to write it to, whole or not at all; None to write none.
        kind: 'html' for the page; 'md', 'csv' or 'json' for its tables.
        figures: folder for each figure as SVG, PNG and CSV; it is made where it is missing.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        on_step: called with what is done now, and how many steps of how many are done.

    Raises:
        NbtlError: the file or folder cannot be written.
        SpecError: the name is that of final runs.
        StudyNotFoundError: no such study.
    """
    return Workspace(home, storage).results.report(
        name, output, kind=kind, figures=figures, on_step=on_step
    )


def reproduce(
    dataset: str,
    *,
    name: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    root: str | None = None,
    image_px: int | None = None,
    epochs: int | None = None,
    settings: Sequence[str] = (),
    home: Path | None = None,
    storage: str | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Make the study of the paper's recipes where there is none yet, and return its tables.

    Where the study exists and nothing about it is given, it is only looked at.

    Args:
        dataset: `aircraft`, `caltech256`, `cars` or `dtd`.
        name: of the study; by default `paper-` and the dataset.
        model: a timm model, instead of the paper's Inception-v4.
        weights: as `model.weights`.
        root: where the images lie already.
        image_px: side of the network's input.
        epochs: of one run.
        settings: `dotted.key=value`, applied last.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.
        progress: of decoding the images.

    Raises:
        SpecError: the paper has no such dataset, or a setting is not valid.
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        StudyExistsError: a study of this name has other settings.
        StorageError: the database refuses.
    """
    return Workspace(home, storage).results.reproduce(
        dataset,
        name=name,
        model=model,
        weights=weights,
        root=root,
        image_px=image_px,
        epochs=epochs,
        settings=settings,
        progress=progress,
    )


def export(
    name: str,
    output: Path,
    *,
    onnx: bool = False,
    seed_ensemble: bool = False,
    which: Which = "winner",
    force: bool = False,
    home: Path | None = None,
    storage: str | None = None,
) -> Export:
    """Write the winner's weights of the first seed of the test stage, or those of all its seeds.

    The first seed, whatever the test images said of it: to take the best would be to select on
    them.

    Args:
        name: of the study, which is finalised.
        output: the folder to make; it must not exist, or be empty.
        onnx: write model.onnx as well, checked against torch.
        seed_ensemble: all seeds, each in a folder of its own, to be averaged by `predict`.
        which: the winner, or the default recipe.
        force: replace a folder that an earlier export made.
        home: of the workspace; by default the user's data folder.
        storage: URL of the workspace's database; by default the embedded one.

    Raises:
        StudyNotFoundError: no such study, or it is not finalised.
        WeightsError: the weights are not on this machine, or damaged; or `output` is taken.
    """
    return Workspace(home, storage).models.export(
        name, output, onnx=onnx, seed_ensemble=seed_ensemble, which=which, force=force
    )


def train(
    recipe: Recipe,
    *,
    home: Path | None = None,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
    measuring: Progress | None = None,
) -> Iterator[Epoch]:
    """Train one recipe without a study, and yield its epochs.

    Args:
        recipe: what to train; `best` returns one.
        home: of the workspace; by default the user's data folder.
        checkpoints: a folder to resume from and to write to after each epoch.
        progress: of the decoding of images, where that is still to be done.
        measuring: of what some methods measure of the source network, once for a dataset.

    Raises:
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        DivergedError: the loss is no longer finite.
    """
    return Workspace(home).models.train(
        recipe, checkpoints=checkpoints, progress=progress, measuring=measuring
    )


def predict(
    model: Path,
    images: Sequence[str | Path],
    *,
    ten_crop: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    progress: Progress | None = None,
) -> Predictions:
    """Classify images with a model that `export` wrote, or any timm folder with label names.

    Args:
        model: the folder.
        images: files, folders and globs; where subfolders have the names of classes, accuracies
            are counted as well.
        ten_crop: average over ten crops of each image.
        batch_size: images, or crops of images, per forward.
        device: auto, cpu, cuda, cuda:1, mps.
        progress: called with the number of images done and of all.

    Raises:
        WeightsError: the folder is no such model, or damaged.
        DataError: an argument names no image.
        SpecError: the device is not on this machine, or the batch size is no size.
    """
    from nbtl_search.workspace import models

    return models.predict(
        model, images, ten_crop=ten_crop, batch_size=batch_size, device=device, progress=progress
    )
