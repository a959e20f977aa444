"""Batch spectral shrinkage: the smallest singular values of a batch's features are made smaller.

    L = eta * sum over the k smallest of min(b, D) singular values of sigma^2(F)

where F holds the b x D features that enter the classifier. Source: Chen, Wang, Fu, Long and Wang
2019, "Catastrophic forgetting meets negative transfer: batch spectral shrinkage for safe transfer
learning", NeurIPS 2019.

The squares are the eigenvalues of the smaller Gram matrix, F F' or F' F. Where U holds the
eigenvectors of the k smallest, their sum is ||U' F||^2 with the gradient 2 U U' F, which asks for
no derivative of U and divides by no gap between eigenvalues. Where eigenvalue k is also
eigenvalue k + 1, the sum has no gradient but a whole set of them (it is concave in the Gram
matrix); the U that the solver returns picks one.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nbtl_search.errors import SpecError


def spectral_shrinkage(
    features: Float[Tensor, "batch features"], *, eta: float = 0.001, k: int = 1
) -> Float[Tensor, ""]:
    """Return eta times the sum of the k smallest squared singular values, to add to the loss.

    It is computed in float32 at least, also under autocast. It grows with the square of the
    features' scale and depends on the batch size. Features that are not finite are not
    penalised: the value is then zero, without a gradient.

    Args:
        features: of the images of one forward pass, as they enter the classifier.
        eta: strength.
        k: how many singular values, from the smallest.

    Raises:
        SpecError: fewer than two images, whose only singular value is their norm; or k is not
            between 1 and the number of singular values.
    """
    _check(*features.shape, k=k)
    with torch.autocast(features.device.type, enabled=False):
        F = features.to(torch.promote_types(features.dtype, torch.float32))
        F = F if F.shape[0] <= F.shape[1] else F.T
        U = _smallest_directions(F.detach(), k)
        if U is None:
            return F.new_zeros(())
        return eta * (U.T @ F).square().sum()


@torch.no_grad()
def _smallest_directions(F: Float[Tensor, "n m"], k: int) -> Float[Tensor, "n k"] | None:
    """Return the eigenvectors of F F' with the k smallest eigenvalues; None if there are none."""
    gram = F @ F.T
    # The solver raises on such a matrix, or returns what is not finite, by device.
    if not gram.isfinite().all():
        return None
    try:
        U: Tensor = torch.linalg.eigh(gram).eigenvectors[:, :k]
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    return U if U.isfinite().all() else None


def _check(n_images: int, n_features: int, *, k: int) -> None:
    if n_images < 2:
        message = (
            f"spectral shrinkage needs a batch of 2 images or more, got {n_images}; use a larger "
            "batch, or leave the method out"
        )
        raise SpecError(message)
    if not 1 <= k <= min(n_images, n_features):
        message = (
            f"1 <= k <= {min(n_images, n_features)} singular values of {n_images} x {n_features} "
            f"features, got {k}; choose a smaller k or a larger batch"
        )
        raise SpecError(message)
