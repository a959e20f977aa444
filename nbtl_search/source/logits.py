"""Pooled features of exactly the images that a run has in its hands.

What the source network says of every training image, computed once: the teacher as released.

Learning without forgetting, Li and Hoiem 2016, arXiv 1606.09282, section 3, takes the old network's
answers before training begins. Here they are of the images as they are, not as augmented.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from nbtl_search.data.prepared import Prepared
from nbtl_search.errors import DataError, SpecError, WeightsError
from nbtl_search.network.weights import RANDOM
from nbtl_search.source.features import Features, Progress, extract
from nbtl_search.spec import Recipe


def training_features(
    recipe: Recipe,
    *,
    prepared: Prepared,
    home: Path,
    splits: Sequence[str] = ("train",),
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """Return what `features.extract` does, of the images that are prepared and no others.

    Raises:
        SpecError: the weights are random.
        DataError: the images cannot be had, or are others than the prepared ones.
        WeightsError: the weights cannot be had.
    """
    found = extract(recipe, home=home, splits=splits, n_threads=n_threads, progress=progress)
    if found.data_digest != prepared.digest:
        message = (
            f"the images must be those that were prepared, got digest {found.data_digest[:12]} for "
            f"{prepared.digest[:12]}; start again, with the images as they are now"
        )
        raise DataError(message)
    return found


def teacher_logits(
    recipe: Recipe,
    *,
    prepared: Prepared,
    home: Path,
    progress: Progress | None = None,
) -> Float32[Tensor, "n z"]:
    """Return the source classes' logits of every image that is trained on, on the CPU.

    Rows are in the order of the dataset, split after split, so that those of a batch are
    `logits[batch.indices]`. They follow from features that are kept for next time, of images under
    the evaluation transform, in float32.

    Args:
        recipe: of which data, model and the device count.
        prepared: the recipe's data.
        home: below it the features are kept.
        progress: called with (images done, images in all).

    Raises:
        SpecError: images are mixed, or the weights are random.
        DataError: the images cannot be had, or are others than the prepared ones.
        WeightsError: the weights have no classifier of pooled features, or cannot be had.
    """
    check_precomputable(recipe)
    splits = ("train", "val") if recipe.data.train_on == "train+val" else ("train",)
    found = training_features(
        recipe,
        prepared=prepared,
        home=home,
        splits=splits,
        n_threads=recipe.train.n_threads,
        progress=progress,
    )
    weight, bias = _head(recipe, found)
    logits = [torch.from_numpy(getattr(found, split)) @ weight.T + bias for split in splits]
    return torch.cat(logits)


def check_precomputable(recipe: Recipe) -> None:
    """Refuse settings under which logits from before training are of other images.

    Raises:
        SpecError: images are mixed, or the weights are random.
    """
    if recipe.augment.mixup > 0:
        message = (
            "methods.distill_teacher = 'precomputed' needs augment.mixup == 0, since its logits "
            f"are of unmixed images, got {recipe.augment.mixup}; set mixup to 0, or the teacher to "
            "'online'"
        )
        raise SpecError(message)
    if recipe.model.weights == RANDOM:
        message = (
            "dials.distill needs pre-trained weights: model.weights != 'random', got 'random'; "
            "name 'timm', 'shipped', a file or a folder, or set distill to 0"
        )
        raise SpecError(message)


def _head(recipe: Recipe, found: Features) -> tuple[Float32[Tensor, "z d"], Float32[Tensor, " z"]]:
    if found.head_weight is None or found.head_bias is None:
        message = (
            "a teacher's logits need weights with their linear classifier, got "
            f"{recipe.model.weights!r} of {recipe.model.name!r} without one; use weights that "
            "have it, or set dials.distill to 0"
        )
        raise WeightsError(message)
    return torch.from_numpy(found.head_weight), torch.from_numpy(found.head_bias)
