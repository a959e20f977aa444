"""Diagnosis of how well a recipe's pre-trained weights fit its images: every measure, once.

`MEASURES` names each with what it is given.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import scipy.special
from jaxtyping import Float64, Int64

from nbtl_search.data.prepared import Prepared, prepare
from nbtl_search.diagnosis import random_weights
from nbtl_search.errors import SpecError
from nbtl_search.measures import (
    emd,
    fisher,
    gbc,
    hscore,
    leep,
    linear,
    logme,
    nce,
    sfda,
    transrate,
)
from nbtl_search.measures.classes import with_null
from nbtl_search.network.device import threads
from nbtl_search.network.model import SourceNetwork
from nbtl_search.network.weights import read_weights
from nbtl_search.source.features import (
    Features,
    check_pretrained,
    cpu_threads,
    extract,
    source_network,
)
from nbtl_search.source.prototypes import (
    Prototypes,
    SourceImages,
    check_matches,
    check_width,
    prototypes_of_folder,
    read_prototypes,
    save_prototypes,
)
from nbtl_search.spec import (
    POOLED,
    TITLES,
    Diagnosis,
    Measured,
    Progress,
    Recipe,
    StageProgress,
)

Rows = tuple[Measured, ...]
Measure = Callable[["Evidence"], Rows]

EMD: Final = ("emd", "emd_similarity", "emd_scale_free")
EMD_ROWS: Final = "emd_classifier_rows"
NO_SOURCE: Final = "needs source prototypes (--source)"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What measures are taken from."""

    features: Features
    source: Prototypes | None = None
    min_source_images: int = 200
    seed: int = 0

    @cached_property
    def train(self) -> Float64[np.ndarray, "n d"]:
        """Return the features of the training images in float64."""
        return self.features.train.astype(np.float64)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Return the labels of the training images."""
        return self.features.train_labels

    @cached_property
    def source_probabilities(self) -> Float64[np.ndarray, "n z"] | None:
        """Return what the source classifier says of the training images, if there is one."""
        weight, bias = self.features.head_weight, self.features.head_bias
        if weight is None or bias is None:
            return None
        logits = self.train @ weight.astype(np.float64).T + bias.astype(np.float64)
        probabilities: Float64[np.ndarray, "n z"] = scipy.special.softmax(logits, axis=1)
        return probabilities

    @cached_property
    def prototypes(self) -> tuple[Float64[np.ndarray, "c d"], Int64[np.ndarray, " c"]]:
        """Return the mean feature and the number of images of each class."""
        return emd.prototypes_of(self.train, self.labels)

    def no_head(self, name: str) -> Rows:
        """Return the measure that would need the source classifier."""
        if self.features.layer != POOLED:
            reason = (
                f"needs the features that enter the classifier, got layer {self.features.layer!r}; "
                f"measure {POOLED!r}"
            )
        else:
            reason = (
                "needs a linear source classifier in the weights file, got none that fits; use "
                "weights that were saved with theirs"
            )
        return (Measured(name=name, reason=reason),)


def _fixed(evidence: Evidence) -> Rows:
    features = evidence.features
    val = features.val.astype(np.float64)
    args = (evidence.train, evidence.labels, val, features.val_labels)
    return (linear.fixed_accuracy(*args, seed=evidence.seed),)


def _emd(evidence: Evidence) -> Rows:
    source = evidence.source
    if source is None:
        return tuple(Measured(name=name, reason=NO_SOURCE) for name in EMD)
    return emd.emd(
        *evidence.prototypes,
        source.prototypes,
        source.counts,
        min_source_images=evidence.min_source_images,
    )


def _emd_rows(evidence: Evidence) -> Rows:
    rows = evidence.features.head_weight
    if rows is None:
        return evidence.no_head(EMD_ROWS)
    return (emd.emd_to_rows(*evidence.prototypes, rows.astype(np.float64)),)


def _leep(evidence: Evidence) -> Rows:
    probabilities = evidence.source_probabilities
    if probabilities is None:
        return evidence.no_head("leep")
    return (with_null(leep.leep, probabilities, evidence.labels),)


def _nce(evidence: Evidence) -> Rows:
    probabilities = evidence.source_probabilities
    if probabilities is None:
        return evidence.no_head("nce")
    return (with_null(nce.nce, probabilities, evidence.labels),)


MEASURES: Final[Mapping[str, Measure]] = {
    "fixed_accuracy": _fixed,
    "fisher": lambda given: (fisher.fisher(given.train, given.labels),),
    "emd": _emd,  # and its similarity, and the scale-free variant
    EMD_ROWS: _emd_rows,
    "logme": lambda given: (with_null(logme.logme, given.train, given.labels),),
    "hscore": lambda given: (hscore.hscore(given.train, given.labels),),
    "hscore_regularised": lambda given: (hscore.hscore_regularised(given.train, given.labels),),
    "leep": _leep,
    "nce": _nce,
    "transrate": lambda given: (with_null(transrate.transrate, given.train, given.labels),),
    "gbc": lambda given: (with_null(gbc.gbc, given.train, given.labels),),
    "sfda": lambda given: (with_null(sfda.sfda, given.train, given.labels),),
}
"""Everything that features tell; random_accuracy is trained for (diagnosis/random_weights.py)."""


DECODING: Final = "decoding images"
FEATURES: Final = "extracting features"
SOURCE: Final = "extracting source features"
MEASURING: Final = "measuring"
SCRATCH: Final = "training from random weights"

MIN_UPDATES: Final = 600  # fewer leave a network from random weights at chance
_VERSIONS_OF: Final = ("nbtl-search", "torch", "timm", "numpy", "scipy", "scikit-learn", "POT")


def diagnose(
    recipe: Recipe,
    *,
    home: Path,
    layer: str = POOLED,
    source: SourceImages | None = None,
    random_epochs: int | None = None,
    random_lr: float = random_weights.SCRATCH_LR,
    seed: int = 0,
    on_stage: StageProgress | None = None,
    n_threads: int | None = None,
) -> Diagnosis:
    """Measure how well the weights of a recipe fit its images, in the order of `TITLES`.

    Features and the training from random weights are kept below home, so that a second diagnosis
    costs little; what is interrupted goes on where it was.

    Args:
        recipe: the images, the network, and how the training from random weights trains.
        home: below it everything is kept.
        layer: 'pooled' (what enters the classifier), or a block's number from the input.
        source: of the prototypes that EMD needs.
        random_epochs: of the training from random weights; 0 for none, None for as many as a
            trial has, and at least `MIN_UPDATES` updates.
        random_lr: its rate.
        seed: of the linear classifier and of the training from random weights.
        on_stage: called with (stage, done, in all).
        n_threads: CPU threads of features and measures; by default all cores'. The training from
            random weights has the recipe's.

    Raises:
        SpecError: the weights are random, or the network has no such layer.
        DataError: images or source prototypes cannot be had, or do not fit.
        WeightsError: the weights cannot be had, or are not those of the source prototypes.
        OutOfMemoryError: not even one image at a time fits.
    """
    started_s = time.perf_counter()
    context = _Context(home=home, layer=layer, on_stage=on_stage, n_threads=n_threads)
    given = _checked(recipe, source, random_epochs=random_epochs)
    weights = read_weights(recipe.model, home=home)
    if given is not None:
        check_matches(given, weights_digest=weights.digest, layer=layer)
    prepared = prepare(recipe.data, home=home, progress=context.on(DECODING))
    network = source_network(
        recipe, home=home, prepared=prepared, n_threads=n_threads, weights=weights
    )
    features = context.features(prepared, network)
    if source is not None and given is None:
        given = context.prototypes(source, network)
    measured = {row.name: row for row in context.measured(features, given, source, seed=seed)}
    # On a small GPU they would halve the micro-batch of what is trained next, and so change it.
    del network, weights
    recipe = recipe.replace(train=recipe.train.replace(seed=seed))
    epochs = _epochs(recipe, len(features.train)) if random_epochs is None else random_epochs
    measured[random_weights.NAME] = _random(
        recipe, prepared, home, epochs, random_lr, context.on(SCRATCH)
    )
    measures = tuple(measured[name] for name in TITLES if name in measured)
    seconds = time.perf_counter() - started_s
    return _diagnosis(recipe, features, measures, seconds=seconds, seed=seed)


@dataclass(frozen=True, kw_only=True)
class _Context:
    """Where and how measures are taken, and who is told how far they are."""

    home: Path
    layer: str
    on_stage: StageProgress | None
    n_threads: int | None

    def features(self, prepared: Prepared, network: SourceNetwork) -> Features:
        """Return the features of the prepared images."""
        return extract(
            prepared, network, home=self.home, layer=self.layer, progress=self.on(FEATURES)
        )

    def prototypes(self, source: SourceImages, network: SourceNetwork) -> Prototypes:
        """Return the prototypes of a folder, and save them where that is wanted."""
        made = prototypes_of_folder(
            source.place, network, home=self.home, layer=self.layer, progress=self.on(SOURCE)
        )
        if source.save is not None:
            save_prototypes(made, source.save)
        return made

    def measured(
        self,
        features: Features,
        given: Prototypes | None,
        source: SourceImages | None,
        *,
        seed: int,
    ) -> Iterator[Measured]:
        """Yield every measure of the features."""
        if given is not None:
            check_width(given, n_features=features.train.shape[1])
        least = 0 if source is None else source.min_images
        evidence = Evidence(features=features, source=given, min_source_images=least, seed=seed)
        progress = self.on(MEASURING) or (lambda _done, _total: None)
        with threads(self.n_threads or cpu_threads()):
            for n_done, measure in enumerate(MEASURES.values()):
                progress(n_done, len(MEASURES))
                yield from measure(evidence)
        progress(len(MEASURES), len(MEASURES))

    def on(self, stage: str) -> Progress | None:
        """Return what is told how far a stage is."""
        on_stage = self.on_stage
        return None if on_stage is None else lambda done, total: on_stage(stage, done, total)


def versions() -> dict[str, str]:
    """Return the versions that the figures of a diagnosis depend on."""
    found = {}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _checked(
    recipe: Recipe, source: SourceImages | None, *, random_epochs: int | None
) -> Prototypes | None:
    """Refuse at once what would only be found after minutes of work; return a file's prototypes."""
    check_pretrained(recipe)
    if (random_epochs or 0) < 0:
        message = f"random_epochs >= 0 must hold, got {random_epochs}; 0 is none"
        raise SpecError(message)
    if source is None:
        return None
    source.check()
    return None if source.place.is_dir() else read_prototypes(source.place)


def _epochs(recipe: Recipe, n_train: int) -> int:
    """Return as many epochs as a trial has, or more where there are few images."""
    n_updates = recipe.train.updates_per_epoch(n_train)
    return max(recipe.train.epochs, -(-MIN_UPDATES // n_updates))


def _random(
    recipe: Recipe,
    prepared: Prepared,
    home: Path,
    epochs: int,
    lr: float,
    progress: Progress | None,
) -> Measured:
    if epochs == 0:
        return random_weights.not_trained(
            "not asked for (give --random-epochs, or leave --no-random out)"
        )
    return random_weights.random_accuracy(
        recipe, prepared=prepared, home=home, epochs=epochs, lr=lr, progress=progress
    )


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
        normalisation=recipe.data.normalisation,
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
