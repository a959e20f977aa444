"""Pooled features of exactly the images that a run has in its hands."""

from collections.abc import Sequence
from pathlib import Path

from nbtl_search.data.prepared import Prepared
from nbtl_search.engine.features import Features, Progress, extract
from nbtl_search.errors import DataError
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
