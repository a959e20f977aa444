"""The measures of a diagnosis: which there are, and what each is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import scipy.special
from jaxtyping import Float64, Int64

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
from nbtl_search.measures.shuffled import with_null
from nbtl_search.source.features import Features
from nbtl_search.source.prototypes import Prototypes
from nbtl_search.spec import POOLED, Measured

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
