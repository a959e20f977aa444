"""Average of the weights of final runs: one network at the cost of one.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time", arXiv 2203.05482. Their networks have no batch norm.
Running statistics belong to the weights they were measured under, so those of the average are
measured anew on training images, as Izmailov et al. 2018 do (arXiv 1803.05407, section 3.2).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from nbtl_search.data.prepared import Prepared
from nbtl_search.errors import DataError, WeightsError
from nbtl_search.spec import Dials, Recipe
from nbtl_search.training.final_run import Kept
from nbtl_search.training.run import Run


def averaged(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each tensor of floats, in its own type; of others the first's.

    Sums are taken in float64, so that neither the order nor the number of members leaves a trace.

    Raises:
        WeightsError: the states differ in their keys or shapes.
    """
    first = states[0]
    for state in states[1:]:
        differing = sorted(
            (first.keys() ^ state.keys())
            | {key for key in first.keys() & state.keys() if first[key].shape != state[key].shape}
        )
        if differing:
            message = (
                f"weights that are averaged have the same keys and shapes, got others for "
                f"{differing[0]!r}; average runs of one network only"
            )
            raise WeightsError(message)
    return {key: _mean([state[key] for state in states]) for key in first}


def _mean(values: Sequence[Tensor]) -> Tensor:
    if not values[0].is_floating_point():
        return values[0].clone()
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value in values:
        total += value.double()
    return (total / len(values)).to(values[0].dtype)


def average_of(members: Sequence[Kept], recipe: Recipe, *, prepared: Prepared, home: Path) -> Run:
    """Return a run whose network has the average of the members' weights; it is never trained.

    Args:
        members: final runs of one seed.
        recipe: of the first of them; data, network, device and precision are taken from it.
        prepared: the images they were trained on.
        home: below it weights are cached.

    Raises:
        WeightsError: they are not of one network, or of other runs.
        DataError: a member was trained on other images.
    """
    strangers = [each for each in members if each.recipe.replace(dials=recipe.dials) != recipe]
    if strangers:
        message = (
            f"weights that are averaged are of runs that differ in their dials only, got one with "
            f"seed {strangers[0].recipe.train.seed} and not {recipe.train.seed}, or with other "
            "settings; finalise the study again"
        )
        raise WeightsError(message)
    others = [each for each in members if each.data_digest != prepared.digest]
    if others:
        message = (
            f"weights that are averaged were trained on the data with digest "
            f"{prepared.digest[:12]}, got {str(others[0].data_digest)[:12]}; start the runs again"
        )
        raise DataError(message)
    # What a method needs beside the network, such as the source's attention, would take hours.
    plain = recipe.replace(dials=Dials(source_head=recipe.dials.source_head))
    run = Run(plain, prepared=prepared, home=home)
    run.network.model.load_state_dict(averaged([member.state for member in members]))
    run.gradient.micro_batch = min(run.gradient.micro_batch, *(m.micro_batch for m in members))
    return run


def measure_batch_norm(run: Run) -> Iterator[int]:
    """Measure the running statistics anew: their mean over the batches of one epoch.

    Yields the number of batches done. Nothing is done where there are none.
    """
    model = run.network.model
    model.eval()  # dropout and stochastic depth stay off
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches, each counting alike
        norm.train()
    for n_done, batch in enumerate(run.batches(), start=1):
        # In the parts that the memory holds, as in training.
        parts = batch.images.tensor_split(math.ceil(len(batch.images) / run.gradient.micro_batch))
        with run.placement.numerics(), torch.no_grad(), run.placement.autocast():
            for images in parts:
                model(images.to(memory_format=run.placement.memory_format))
        yield n_done
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
