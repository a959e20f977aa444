"""Terms that methods add to the loss of a micro-batch, and to the gradient.

To the loss there are two sides, as DTNH tells them apart:

* the task's: batch spectral shrinkage, a mean over the micro-batches weighted by their shares;
* the source's: DELTA and distillation, which pull to the source network. A mean over the batch is
  weighted by a micro-batch's share as the cross-entropy is; a sum over it is added up as it is.

The source network sees the very images that the task's loss is of: augmented and mixed.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbtl_search.errors import SpecError
from nbtl_search.network.model import Network
from nbtl_search.source.teacher import SourceSignals
from nbtl_search.spec import Dials, MethodSettings, Recipe
from nbtl_search.transfer.delta import delta, feature_map_distance
from nbtl_search.transfer.distillation import PooledFeatures, distillation
from nbtl_search.transfer.dtnh import Dtnh, dtnh
from nbtl_search.transfer.feature_hooks import FeatureHook, FeatureHooks
from nbtl_search.transfer.freezing import trainable_penalty
from nbtl_search.transfer.penalties import L2SP, l2sp
from nbtl_search.transfer.spectral import spectral_shrinkage

Images = Float[Tensor, "batch 3 h w"]
Indices = Int[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class Added:
    """What is added to a micro-batch's loss; None where nothing is."""

    task: Float[Tensor, ""] | None = None
    source: Float[Tensor, ""] | None = None


class Recorded(NamedTuple):
    """What was recorded of the last forward pass of a model, with its graph."""

    hooks: FeatureHooks
    pooled: PooledFeatures | None

    @property
    def features(self) -> Float[Tensor, "batch features"]:
        """Return what entered the classifier."""
        assert self.pooled is not None, "it is recorded wherever a term needs it"  # noqa: S101
        return self.pooled.features


class Terms:
    """The terms of a recipe, for one network that learns."""

    def __init__(self, model: nn.Module, recipe: Recipe, source: SourceSignals) -> None:
        self._model = model
        self._dials: Dials = recipe.dials
        self._methods: MethodSettings = recipe.methods
        self.source = source
        self._pools = bool(recipe.dials.bss or recipe.dials.distill)
        _check_micro_batches(recipe)
        with self.recording():  # a model that cannot be recorded is refused before it trains
            pass

    @contextmanager
    def recording(self) -> Iterator[Recorded]:
        """Record what the terms need of the model's forward passes inside the context."""
        with _recorded(self._model, self.source.hooks, pooled=self._pools) as recorded:
            yield recorded

    def added(self, recorded: Recorded, images: Images, indices: Indices, share: float) -> Added:
        """Return the terms of the micro-batch whose forward pass was recorded last.

        Args:
            recorded: of the model that learns.
            images: of the micro-batch, as the model saw them.
            indices: of these images among the training images.
            share: of the micro-batch in its batch.

        Raises:
            SpecError: the micro-batch has too few images for spectral shrinkage.
        """
        return Added(
            task=self._shrinkage(recorded, share),
            source=self._pull(recorded, images, indices, share),
        )

    def _shrinkage(self, recorded: Recorded, share: float) -> Tensor | None:
        if not self._dials.bss:
            return None
        features = recorded.features
        return share * spectral_shrinkage(features, eta=self._dials.bss, k=self._methods.bss_k)

    def _pull(
        self, recorded: Recorded, images: Images, indices: Indices, share: float
    ) -> Tensor | None:
        source, dials = self.source, self._dials
        if not source.hooks and not dials.distill:
            return None
        terms = []
        with ExitStack() as stack:
            maps, logits = self._asked(stack, images, indices)
            if source.hooks:
                weight = share if self._methods.delta_reduction == "mean" else 1.0
                terms.append(weight * dials.delta_alpha * self._distance(recorded.hooks.maps, maps))
            if logits is not None and source.head is not None:
                kept = distillation(
                    source.head(recorded.features),
                    logits,
                    temperature=dials.distill_temperature,
                    squared=self._methods.distill_squared,
                )
                terms.append(share * dials.distill * kept)
        return torch.stack(terms).sum()

    @torch.no_grad()
    def _asked(
        self, stack: ExitStack, images: Images, indices: Indices
    ) -> tuple[Mapping[str, Tensor], Tensor | None]:
        """Return the source network's feature maps and logits of the same images."""
        source = self.source
        noted = None if source.logits is None else source.logits[indices]
        if source.model is None:
            return {}, noted
        listens = source.head is not None and noted is None
        recorded = stack.enter_context(_recorded(source.model, source.hooks, pooled=listens))
        source.model(images)
        if source.head is None or noted is not None:
            return recorded.hooks.maps, noted
        return recorded.hooks.maps, source.head(recorded.features)

    def _distance(self, maps: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> Tensor:
        reduction = self._methods.delta_reduction
        if self.source.attention is None:
            return feature_map_distance(maps, source, reduction=reduction)
        return delta(maps, source, self.source.attention, reduction=reduction)


@contextmanager
def _recorded(
    model: nn.Module, hooks: tuple[FeatureHook, ...], *, pooled: bool
) -> Iterator[Recorded]:
    with ExitStack() as stack:
        yield Recorded(
            hooks=stack.enter_context(FeatureHooks(model, hooks)),
            pooled=stack.enter_context(PooledFeatures(model)) if pooled else None,
        )


def _check_micro_batches(recipe: Recipe) -> None:
    """Refuse spectral shrinkage of micro-batches that will be too small, before training."""
    n, k = recipe.train.batch_size, recipe.methods.bss_k
    n_micro_batches = math.ceil(n / min(recipe.train.micro_batch or n, n))
    if recipe.dials.bss and n // n_micro_batches < max(2, k):
        message = (
            f"spectral shrinkage needs micro-batches of {max(2, k)} images or more (methods.bss_k "
            f"= {k}), got {n // n_micro_batches} with batch_size = {n} and micro_batch = "
            f"{recipe.train.micro_batch}; use a larger batch or micro_batch, or bss = 0"
        )
        raise SpecError(message)


def penalty_of(recipe: Recipe, network: Network) -> L2SP | Dtnh:
    """Return what adds the pulls of L2 and L2-SP to the gradients, projected where DTNH is on."""
    penalty = l2sp(
        network.layers,
        recipe.dials,
        anchors=network.anchors,
        scope=recipe.train.penalty_scope,
        compat=recipe.compat,
    )
    penalty, mode = trainable_penalty(penalty), recipe.dials.dtnh
    if mode == "off":
        return penalty
    granularity = recipe.methods.dtnh_granularity
    return dtnh(network.layers, penalty, mode=mode, granularity=granularity)
