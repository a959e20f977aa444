"""Loss and accuracy on held-out images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from nbtl_search.network.device import Placement

LabelledImages = tuple[Float[Tensor, "_ 3 _ _"], Int[Tensor, " _"]]
LabelledTenCrops = tuple[Float[Tensor, "_ 10 3 _ _"], Int[Tensor, " _"]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over images, from which loss and accuracies follow; scores add up."""

    n_images: int = 0
    loss_sum: float = 0.0
    n_top1: int = 0
    n_top5: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(
            n_images=self.n_images + other.n_images,
            loss_sum=self.loss_sum + other.loss_sum,
            n_top1=self.n_top1 + other.n_top1,
            n_top5=self.n_top5 + other.n_top5,
        )

    @property
    def loss(self) -> float:
        """Return the mean cross-entropy."""
        return self.loss_sum / self.n_images

    @property
    def top1(self) -> float:
        """Return the percentage of images whose class has the largest logit."""
        return 100 * self.n_top1 / self.n_images

    @property
    def top5(self) -> float:
        """Return the percentage of images whose class is among the five largest logits."""
        return 100 * self.n_top5 / self.n_images


def score(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Score:
    """Score one batch; with fewer than five classes top-5 takes all of them."""
    logits = logits.float()
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return Score(
        n_images=len(labels),
        loss_sum=float(functional.cross_entropy(logits, labels, reduction="sum")),
        n_top1=int(best[:, 0].sum()),
        n_top5=int(best.sum()),
    )


def running_score(
    model: nn.Module,
    batches: Iterable[LabelledImages],
    *,
    placement: Placement,
    micro_batch: int | None = None,
) -> Iterator[Score]:
    """Yield the score so far after every batch. The model is left in evaluation mode."""
    total = Score()
    for logits, labels in running_logits(
        model, batches, placement=placement, micro_batch=micro_batch
    ):
        total += score(logits, labels)
        yield total


def running_logits(
    model: nn.Module,
    batches: Iterable[LabelledImages],
    *,
    placement: Placement,
    micro_batch: int | None = None,
) -> Iterator[tuple[Float[Tensor, "_ classes"], Int[Tensor, " _"]]]:
    """Yield logits and labels of every batch. The model is left in evaluation mode."""
    model.eval()
    for images, labels in batches:
        yield _logits(model, images, placement=placement, micro_batch=micro_batch), labels


def running_ten_crop(
    model: nn.Module,
    batches: Iterable[LabelledTenCrops],
    *,
    placement: Placement,
    micro_batch: int,
) -> Iterator[tuple[Float[Tensor, "_ classes"], Int[Tensor, " _"]]]:
    """Yield the mean softmax over the ten crops, in float32, and labels of every batch.

    A forward takes `micro_batch` crops. The model is left in evaluation mode.
    """
    model.eval()
    for crops, labels in batches:
        logits = _logits(
            model, crops.flatten(0, 1), placement=placement, micro_batch=micro_batch
        ).float()
        yield logits.softmax(dim=1).unflatten(0, (len(labels), -1)).mean(dim=1), labels


def _logits(
    model: nn.Module,
    images: Float[Tensor, "n 3 h w"],
    *,
    placement: Placement,
    micro_batch: int | None,
) -> Float[Tensor, "n classes"]:
    parts = torch.split(images, micro_batch or len(images))
    with torch.inference_mode(), placement.autocast():
        logits = [model(part.to(memory_format=placement.memory_format)) for part in parts]
        return torch.cat(logits)


def evaluate(
    model: nn.Module,
    batches: Iterable[LabelledImages],
    *,
    placement: Placement,
    micro_batch: int | None = None,
) -> Score:
    """Return the score of all batches. The model is left in evaluation mode."""
    total = Score()
    with placement.numerics():
        for so_far in running_score(model, batches, placement=placement, micro_batch=micro_batch):
            total = so_far
    return total


def largest_weight(model: nn.Module) -> float:
    """Return the largest magnitude among weights and running statistics; not finite if one is."""
    values = [v.detach().abs().max().float() for v in model.state_dict().values() if v.numel()]
    return float(torch.stack(values).max())
