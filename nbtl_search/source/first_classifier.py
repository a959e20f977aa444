"""First classifier of a run: logistic regression on the features that the weights give.

Linear probing, then fine-tuning: Kumar et al. 2022, "Fine-tuning can distort pretrained features
and underperform out-of-distribution", arXiv 2202.10054. A classifier that starts at random pulls
the features about before it is any good; one that was fitted to them first does not.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL
import sklearn
import timm
import torch
from jaxtyping import Float32
from torch import nn

from nbtl_search.data.prepared import Prepared
from nbtl_search.errors import SpecError
from nbtl_search.files import arrays
from nbtl_search.files.shared_folder import writing_below
from nbtl_search.measures.linear import PROTOCOL, STRENGTHS, fit_classifier
from nbtl_search.network.model import Network
from nbtl_search.source.features import BATCH, extract, output_at, source_network
from nbtl_search.spec import POOLED, Progress, Recipe


def start_classifier(
    recipe: Recipe,
    network: Network,
    *,
    prepared: Prepared,
    home: Path,
    measuring: Progress | None = None,
) -> None:
    """Set the classifier to logistic regression on the pre-trained features, in place.

    The features are of the images that are trained on, as they are, in float32. Features and
    classifier are kept below home, where all trials of a study find them.

    Args:
        recipe: of which the training images and the weights count.
        network: of the recipe, just built.
        prepared: the recipe's data.
        home: below it what is measured is kept.
        measuring: called with (images done, images in all) while features are extracted; what it
            raises ends that, and what is kept stays.

    Raises:
        SpecError: the classifier is not one linear layer of the pooled features.
        DataError: `home` cannot be written.
        WeightsError: the weights cannot be had.
    """
    classifier = _linear(network.model)
    if classifier is None or classifier.bias is None:
        raise _refusal(recipe, "another kind")
    splits = recipe.data.learnt_splits
    folder = home / "features" / "classifiers"
    path = folder / f"{_key(recipe, network, prepared, splits)}.part"
    n_classes = len(prepared.classes)
    with writing_below(folder):
        folder.mkdir(parents=True, exist_ok=True)
        rows = arrays.read(path, n=n_classes)
    if rows is None:
        rows = _fitted(recipe, prepared, splits, home, measuring)
        with writing_below(folder):
            arrays.write(path, rows)
    weight = classifier.weight
    if rows.shape != (n_classes, weight[0].numel() + 1):
        raise _refusal(recipe, f"one of {weight[0].numel()} where there are {rows.shape[1] - 1}")
    with torch.no_grad():
        weight.copy_(torch.from_numpy(rows[:, :-1]).reshape(weight.shape))
        classifier.bias.copy_(torch.from_numpy(rows[:, -1]))


def has_linear_head(network: Network) -> bool:
    """Tell whether a network's classifier is one linear layer of what timm gives as features."""
    classifier = _linear(network.model)
    if classifier is None:
        return False
    px, weight = network.image_format.image_px, classifier.weight
    try:
        pooled = output_at(network.model.eval(), POOLED)
        with torch.inference_mode():
            features = pooled(torch.zeros(1, 3, px, px, device=weight.device))
    except (SpecError, TypeError, RuntimeError):  # without timm's two halves, or with others
        return False
    return features.shape == (1, weight[0].numel())


def _linear(model: nn.Module) -> nn.Linear | nn.Conv2d | None:
    """Return the classifier where it is linear: a layer, or a convolution of single pixels."""
    classifier: object = cast("Any", model).get_classifier()
    if isinstance(classifier, nn.Conv2d) and classifier.kernel_size != (1, 1):
        return None
    if not isinstance(classifier, nn.Linear | nn.Conv2d) or classifier.bias is None:
        return None
    return classifier


def _refusal(recipe: Recipe, got: str) -> SpecError:
    return SpecError(
        "head_start = 'logistic' needs a classifier that is one linear layer of the pooled "
        f"features, got {got} in {recipe.model.name!r}; leave head_start out"
    )


def _fitted(
    recipe: Recipe,
    prepared: Prepared,
    splits: Sequence[str],
    home: Path,
    measuring: Progress | None,
) -> Float32[np.ndarray, "classes values"]:
    """Return weight and bias of the classifier, a row for each class."""
    source = source_network(recipe, home=home, prepared=prepared, n_threads=recipe.train.n_threads)
    found = extract(prepared, source, home=home, splits=splits, progress=measuring)
    features = np.concatenate([getattr(found, split) for split in splits])
    labels = np.concatenate([getattr(found, f"{split}_labels") for split in splits])
    fitted = fit_classifier(features, labels, n_classes=len(prepared.classes))
    if isinstance(fitted, str):
        message = f"head_start = 'logistic' must have features to be fitted to: {fitted}"
        raise SpecError(message)
    return np.column_stack([fitted.weight, fitted.bias]).astype(np.float32)


def _key(recipe: Recipe, network: Network, prepared: Prepared, splits: Sequence[str]) -> str:
    """Return the name of what a classifier follows from."""
    follows_from = {
        "data_digest": prepared.digest,
        "weights_digest": network.weights_digest,
        "model": recipe.model.name,
        "image_format": asdict(network.image_format),
        "splits": list(splits),
        "batch_size": BATCH,
        "protocol": PROTOCOL,
        "strengths": STRENGTHS,
        "device": next(network.model.parameters()).device.type,
        "versions": {
            "pillow": PIL.__version__,
            "scikit-learn": sklearn.__version__,
            "timm": timm.__version__,
            "torch": str(torch.__version__),
        },
    }
    text = json.dumps(follows_from, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
