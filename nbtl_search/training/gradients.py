"""The gradient of one batch, in as many micro-batches as the memory asks for."""

import gc
import logging
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nbtl_search.data.loader import Batch
from nbtl_search.errors import DivergedError, OutOfMemoryError, SpecError
from nbtl_search.network.device import Placement, ran_out_of_memory, seeded
from nbtl_search.training.method_losses import Terms
from nbtl_search.transfer.dtnh import Gathered

logger = logging.getLogger(__name__)

ONE_VALUE_TEXT = "more than 1 value per channel"


def soft_cross_entropy(
    logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Return the mean over the batch of -sum_c targets_c log softmax(logits)_c, in float32."""
    # bf16 logits have 8 bits of mantissa: the softmax of them would be off in the third digit.
    return -(targets * functional.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


class Gradient:
    """Computes batch gradients, with micro-batches halved whenever memory runs out.

    The loss of each micro-batch is weighted by its share of the batch, so the effective batch
    stays the same. Batch norm does not: it sees the statistics of a micro-batch, which no
    accumulation can mend. A batch that is tried again starts from the same random and running
    statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        placement: Placement,
        *,
        micro_batch: int,
        terms: Terms,
        gathered: Gathered | None = None,
    ) -> None:
        """Compute gradients of a model.

        Args:
            model: which learns.
            placement: where.
            micro_batch: images of a micro-batch, at most.
            terms: what is added to the task's loss.
            gathered: takes the gradient of what pulls to the source, which then stays out of the
                parameters' own; None to add it to the loss.
        """
        self.micro_batch = micro_batch
        self.terms = terms
        self.gathered = gathered
        self._asked = micro_batch
        self._model = model
        self._placement = placement
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]

    def compute(self, batch: Batch, *, seed: int) -> float:
        """Set every parameter's gradient to the batch loss's; return its cross-entropy alone.

        Raises:
            DivergedError: the loss is not finite.
            OutOfMemoryError: not even one image at a time fits, or too few for what is computed.
            SpecError: batch norm or a method needs more images in a micro-batch.
        """
        # Batch norm's running statistics move in the forward pass: a pass that failed half-way must
        # not leave its part of them, or the curve would depend on when memory ran out.
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
        while True:
            try:
                with seeded(seed, device=self._placement.device):
                    return self._accumulate(batch)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
            except SpecError as error:
                # Too few images for a method: the user's doing where nothing was halved, and the
                # device's where it was.
                if self.micro_batch == self._asked:
                    raise
                raise OutOfMemoryError(str(error)) from error
            except ValueError as error:
                if ONE_VALUE_TEXT in str(error):
                    raise self._too_few_images() from error
                raise
            # Outside the clause: the exception holds the failed pass and all its activations.
            self._make_room(len(batch.targets))

    def _accumulate(self, batch: Batch) -> float:
        self._model.zero_grad(set_to_none=True)
        if self.gathered is not None:
            self.gathered.clear()
        n_images = len(batch.targets)
        # Parts of nearly one size, not full ones and a rest: one image alone breaks batch norm.
        n_micro_batches = math.ceil(n_images / self.micro_batch)
        whole_batch = (batch.images, batch.targets, batch.indices)
        split = (whole.tensor_split(n_micro_batches) for whole in whole_batch)
        return sum(self._add(*part, n_images=n_images) for part in zip(*split, strict=True))

    def _add(self, images: Tensor, targets: Tensor, indices: Tensor, *, n_images: int) -> float:
        """Add the gradients of one micro-batch, and return its share of the cross-entropy."""
        share = len(targets) / n_images
        with self.terms.recording() as recorded:
            with self._placement.autocast():
                images = images.to(memory_format=self._placement.memory_format)
                logits = self._model(images)
                added = self.terms.added(recorded, images, indices, share)
            loss = soft_cross_entropy(logits, targets) * share
            # Before backward: weights and momentum stay as they were when the loss was finite.
            value = finite(loss.item(), "training loss")
            pulled = added.source
            if pulled is not None and self.gathered is not None:
                finite(pulled.item(), "the pull to the source network")
                # Keeps the graph, which the task's loss goes back through afterwards.
                self.gathered.backward(pulled)
                pulled = None
            if added.task is not None or pulled is not None:
                terms = [term for term in (loss, added.task, pulled) if term is not None]
                loss = torch.stack(terms).sum()
                finite(loss.item(), "training loss with its regularisers")
            loss.backward()
        return value

    def _too_few_images(self) -> OutOfMemoryError | SpecError:
        """Return the error for single images whose feature maps are single pixels."""
        asked = self.micro_batch == self._asked
        message = (
            f"micro_batch >= 2, since batch norm needs two values and feature maps are 1 x 1 here, "
            f"got {self.micro_batch}; use "
            + ("a larger train.micro_batch" if asked else "a device with more memory")
            + ", or larger images"
        )
        return SpecError(message) if asked else OutOfMemoryError(message)

    def _make_room(self, n_images: int) -> None:
        before = min(self.micro_batch, n_images)
        if before <= 1:
            message = (
                f"micro_batch >= 1 image must fit in the memory of {self._placement.device}, got "
                "out of memory with 1; use smaller images, a smaller model or another device"
            )
            raise OutOfMemoryError(message)
        # For good, also in checkpoints: what did not fit once would not fit the next time either,
        # and each attempt costs a failed pass.
        self.micro_batch = before // 2
        self._model.zero_grad(set_to_none=True)
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        # The failed pass may hang in cycles of frames; CUDA gives back only what is free.
        gc.collect()
        if self._placement.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory with %d images at once; now %d, the batch stays %d",
            before,
            self.micro_batch,
            n_images,
            extra={"action": "halve_micro_batch", "micro_batch": self.micro_batch},
        )


def finite(loss: float, what: str) -> float:
    """Return the loss.

    Raises:
        DivergedError: it is not finite.
    """
    if not math.isfinite(loss):
        message = f"{what} must be finite, got {loss}; use lower learning rates or a weaker pull"
        raise DivergedError(message)
    return loss
