"""Normalisation and scaling between pre-trained and new layers.

    y = gamma * x / sqrt(||x||^2 + eps),  the norm over the units of one sample

Wang, Ramanan and Hebert 2017, "Growing a brain: fine-tuning by increasing model capacity", CVPR:
new units learn at the pace of pre-trained ones when both have activations of one size.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbtl_search.transfer.source import at_least_float32


class NormScale(nn.Module):
    """Divides a sample by its norm over the units and multiplies by a learned scale per unit."""

    def __init__(self, n_units: int, *, scale: float, eps: float = 1e-6) -> None:
        super().__init__()
        self.n_units, self.scale, self.eps = n_units, scale, eps
        self.gamma = nn.Parameter(torch.full((n_units,), float(scale)))

    def reset_parameters(self) -> None:
        """Set every gamma to the initial scale."""
        nn.init.constant_(self.gamma, self.scale)

    def forward(self, x: Float[Tensor, "batch units"]) -> Float[Tensor, "batch units"]:
        """Return gamma * x / sqrt(||x||^2 + eps), in float32 for half-precision inputs."""
        wide = at_least_float32(x)
        norm = (wide.square().sum(dim=-1, keepdim=True) + self.eps).sqrt()
        return self.gamma * (wide / norm)

    def extra_repr(self) -> str:
        """Return what printing shows inside the brackets."""
        return f"{self.n_units}, scale={self.scale:g}, eps={self.eps:g}"
