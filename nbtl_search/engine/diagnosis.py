"""Diagnose how well a recipe's pre-trained weights fit its images: every measure, once."""

import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from nbtl_search.engine import scratch
from nbtl_search.engine.device import threads
from nbtl_search.engine.features import Features, check_pretrained, cpu_threads, extract
from nbtl_search.engine.measuring import MEASURES, Evidence
from nbtl_search.engine.prototypes import (
    SUFFIX,
    Prototypes,
    check_matches,
    check_target,
    check_width,
    read_prototypes,
    save_prototypes,
)
from nbtl_search.engine.source import prototypes_of_folder
from nbtl_search.engine.weights import read_weights
from nbtl_search.errors import DataError, SpecError
from nbtl_search.spec import POOLED, TITLES, Diagnosis, Measured, Recipe

OnStage = Callable[[str, int, int], None]

DECODING: Final = "decoding images"
FEATURES: Final = "extracting features"
SOURCE: Final = "extracting source features"
MEASURING: Final = "measuring"
SCRATCH: Final = "training from random weights"

MIN_UPDATES: Final = 300  # fewer leave a network from random weights at chance
_VERSIONS_OF: Final = ("nbtl-search", "torch", "timm", "numpy", "scipy", "scikit-learn", "POT")


def diagnose(
    recipe: Recipe,
    *,
    home: Path,
    layer: str = POOLED,
    source: Path | None = None,
    min_source_images: int = 200,
    save_source: Path | None = None,
    random_epochs: int | None = None,
    random_lr: float = scratch.SCRATCH_LR,
    seed: int = 0,
    on_stage: OnStage | None = None,
    n_threads: int | None = None,
) -> Diagnosis:
    """Measure how well the weights of a recipe fit its images, in the order of `TITLES`.

    Features and the training from random weights are kept; what is interrupted goes on.

    Args:
        recipe: the images, the network, and how the training from random weights trains.
        home: below it everything is kept.
        layer: 'pooled' (what enters the classifier), or a block's number from the input.
        source: an .npz file of source prototypes, or a folder of source images.
        min_source_images: source classes with fewer are left out.
        save_source: an .npz file to write the prototypes of a folder to.
        random_epochs: of the training from random weights; 0 for none, None for as many as a
            trial has, and at least `MIN_UPDATES` updates.
        random_lr: its rate.
        seed: of the linear classifier and of the training from random weights.
        on_stage: called with (stage, done, in all).
        n_threads: CPU threads of features and measures; by default all cores'.

    Raises:
        SpecError: the weights are random, or the network has no such layer.
        DataError: images or source prototypes cannot be had, or do not fit.
        WeightsError: the weights cannot be had, or are not those of the source prototypes.
        OutOfMemoryError: not even one image at a time fits.
    """
    started_s = time.perf_counter()
    _check(recipe, random_epochs=random_epochs, min_source_images=min_source_images)
    if save_source is not None:
        _check_save(source, save_source)
    given = None if source is None else _read_source(source, recipe, home=home, layer=layer)
    features = extract(
        recipe,
        home=home,
        layer=layer,
        progress=_on(on_stage, FEATURES),
        decoding=_on(on_stage, DECODING),
        n_threads=n_threads,
    )
    if source is not None and given is None:
        given = prototypes_of_folder(
            source,
            recipe,
            home=home,
            layer=layer,
            progress=_on(on_stage, SOURCE),
            n_threads=n_threads,
        )
        if save_source is not None:
            save_prototypes(given, save_source)
    if given is not None:
        check_width(given, n_features=features.train.shape[1])
    evidence = Evidence(
        features=features, source=given, min_source_images=min_source_images, seed=seed
    )
    with threads(n_threads or cpu_threads()):
        measured = {row.name: row for row in _measured(evidence, _on(on_stage, MEASURING))}
    recipe = recipe.replace(train=recipe.train.replace(seed=seed))
    measured[scratch.NAME] = _random(
        recipe, home, random_epochs, random_lr, len(features.train), _on(on_stage, SCRATCH)
    )
    measures = tuple(measured[name] for name in TITLES if name in measured)
    seconds = time.perf_counter() - started_s
    return _diagnosis(recipe, features, measures, seconds=seconds, seed=seed)


def versions() -> dict[str, str]:
    """Return the versions that the figures of a diagnosis depend on."""
    found = {}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _check(recipe: Recipe, *, random_epochs: int | None, min_source_images: int) -> None:
    """Refuse at once what would only be found after minutes of work."""
    check_pretrained(recipe)
    if (random_epochs or 0) < 0 or min_source_images < 0:
        message = (
            f"random_epochs >= 0 and min_source_images >= 0, got {random_epochs} and "
            f"{min_source_images}; 0 is none"
        )
        raise SpecError(message)


def _check_save(source: Path | None, file: Path) -> None:
    if source is None or not source.is_dir():
        message = (
            f"prototypes are saved of a folder of source images, got {str(source)!r}; give it by "
            "--source"
        )
        raise DataError(message)
    check_target(file)


def _read_source(source: Path, recipe: Recipe, *, home: Path, layer: str) -> Prototypes | None:
    """Return the prototypes of a file; None for a folder, whose features come later."""
    if source.is_dir():
        return None
    if source.suffix != SUFFIX or not source.is_file():
        message = (
            "--source must be an .npz file of prototypes or a folder with one folder of images "
            f"per class, got {str(source)!r}; name one that exists"
        )
        raise DataError(message)
    found = read_prototypes(source)
    digest = read_weights(recipe.model, home=home).digest
    check_matches(found, weights_digest=digest, layer=layer)
    return found


def _measured(
    evidence: Evidence, progress: Callable[[int, int], None] | None
) -> Iterator[Measured]:
    for n_done, measure in enumerate(MEASURES.values()):
        if progress is not None:
            progress(n_done, len(MEASURES))
        yield from measure(evidence)
    if progress is not None:
        progress(len(MEASURES), len(MEASURES))


def _random(
    recipe: Recipe,
    home: Path,
    epochs: int | None,
    lr: float,
    n_train: int,
    progress: Callable[[int, int], None] | None,
) -> Measured:
    if epochs is None:
        n_updates = max(1, n_train // recipe.train.batch_size)
        epochs = max(recipe.train.epochs, -(-MIN_UPDATES // n_updates))
    if epochs == 0:
        return scratch.not_trained("not asked for (give --random-epochs, or leave --no-random out)")
    return scratch.random_accuracy(recipe, home=home, epochs=epochs, lr=lr, progress=progress)


def _diagnosis(
    recipe: Recipe,
    features: Features,
    measures: tuple[Measured, ...],
    *,
    seconds: float,
    seed: int,
) -> Diagnosis:
    n, d = features.train.shape
    return Diagnosis(
        dataset=recipe.data.dataset,
        model=recipe.model.name,
        image_px=recipe.data.image_px,
        layer=features.layer,
        split="train",
        n_images=n,
        n_val=len(features.val_labels),
        n_features=d,
        n_classes=len(set(features.train_labels.tolist())),
        data_digest=features.data_digest,
        weights_digest=features.weights_digest,
        device=features.device,
        seconds=seconds,
        seed=seed,
        versions=versions(),
        measures=measures,
    )


def _on(on_stage: OnStage | None, stage: str) -> Callable[[int, int], None] | None:
    if on_stage is None:
        return None
    return lambda done, total: on_stage(stage, done, total)
