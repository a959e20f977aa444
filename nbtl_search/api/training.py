"""Train one recipe without a study."""

from collections.abc import Callable, Iterator
from pathlib import Path

from nbtl_search.api.home import default_home
from nbtl_search.data.cache import prepare
from nbtl_search.engine import checkpoint
from nbtl_search.engine.train import Run
from nbtl_search.engine.train import train as epochs_of
from nbtl_search.spec import Epoch, Recipe

Progress = Callable[[int, int], None]


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
        home: see above.
        checkpoints: a folder to resume from and to write to after each epoch.
        progress: of the decoding of images, where that is still to be done.
        measuring: of what some methods measure of the source network, once for a dataset.

    Raises:
        DataError: the images cannot be had, or are not as they should be.
        WeightsError: the weights cannot be had, or are of another network.
        DivergedError: the loss is no longer finite.
    """
    home = home or default_home()
    prepared = prepare(recipe.data, home=home, progress=progress)
    run = Run(recipe, prepared=prepared, home=home, measuring=measuring)
    if checkpoints is not None and checkpoint.load_latest(checkpoints, run):
        yield from run.history
    for event in epochs_of(run):
        if isinstance(event, Epoch):
            if checkpoints is not None:
                checkpoint.save(checkpoints, run)
            yield event
