"""LogME: the evidence that a Bayesian linear regression has for the labels, given the features."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, Int

from nbtl_search.measures.classes import Classes, classes_of
from nbtl_search.spec.diagnosis import Measured
from nbtl_search.spec.recipe import SettingValue

NAME = "logme"
TOLERANCE = 1e-6  # of log10 a/b; the evidence is flat there, and its own error far smaller
POINTS_PER_DECADE = 4
GOLDEN = (5**0.5 - 1) / 2
EXACT = 1e-12  # of ||t||^2; a smaller residual is rounding


def logme(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n_labels"]) -> Measured:
    """Measure the largest log evidence per image, mean over the classes.

    For the indicator t of a class, t = F w + noise with w ~ N(0, I/a) and noise ~ N(0, I/b)::

        ln p(t|a,b) = D/2 ln a + N/2 ln b - 1/2 ln|aI + b F^T F|
                      - b/2 ||t - F m||^2 - a/2 ||m||^2 - N/2 ln 2 pi,
        m = b (aI + b F^T F)^-1 F^T t

    is maximised over (a, b). For each a/b the best b is N / (||t - F m||^2 + a/b ||m||^2), so
    that one number is left to search. The usual fixed point, a = g/||m||^2 and
    b = (N-g)/||t - F m||^2 with g = sum s^2/(s^2 + a/b), has the same maxima but can need more
    than a thousand steps where the features say little. The features are not centred and there
    is no intercept. The null is that of features that are zero (a without bound), a lower bound
    for all others.

    Source: You et al., "LogME: practical assessment of pre-trained models for transfer
    learning", ICML 2021, arXiv:2102.11005. The determinant is the full one: where F has rank
    k < D, the released code leaves out (D-k) ln a.
    """
    classes = classes_of(features, labels, drop_constant=False)
    settings: dict[str, SettingValue] = {"tolerance": TOLERANCE}
    if isinstance(classes, str):
        return Measured(name=NAME, reason=classes, settings=settings)
    settings |= {"n": classes.n, "d": classes.d, "n_classes": classes.n_classes}
    spectrum = _spectrum(classes)
    rank = spectrum.squares.size
    settings["rank"] = rank
    if rank == 0:
        reason = "features must not all be zero, they are; use another layer"
        return Measured(name=NAME, reason=reason, settings=settings)
    n_exact = int((spectrum.outside <= EXACT * classes.counts).sum()) if rank < classes.n else 0
    if n_exact:
        reason = f"the evidence must be bounded, but {n_exact} classes are fitted without error "
        reason += f"by {rank} directions for {classes.n} images; give more images"
        return Measured(name=NAME, reason=reason, settings=settings)
    value = float(np.mean(_evidence(spectrum, _best_ratio(spectrum))))
    null = float(np.mean(np.log(classes.n / classes.counts) - 1 - np.log(2 * np.pi)) / 2)
    return Measured(name=NAME, value=value, null=null, settings=settings)


@dataclass(frozen=True, kw_only=True)
class _Spectrum:
    """All that the evidence depends on, in the coordinates of F's singular vectors.

    Attributes:
        squares: s^2, the squared singular values that are not zero.
        inside: z^2, the squared coordinates of each class's t along the left singular vectors.
        outside: What of ||t||^2 no linear map of the features can fit.
        n: Images.
    """

    squares: Float64[np.ndarray, " k"]
    inside: Float64[np.ndarray, "c k"]
    outside: Float64[np.ndarray, " c"]
    n: int

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the a/b beyond which the evidence does not change any more."""
        return 1e-10 * float(self.squares.min()), 1e10 * float(self.squares.max())


def _spectrum(classes: Classes) -> _Spectrum:
    """Return F's singular values and each class's coordinates.

    A zero singular value multiplies ln|aI + b F^T F| by a and D/2 ln a takes that back, so that
    only the others are kept: with them the determinant is still the full one.
    """
    left, singular, _ = scipy.linalg.svd(classes.features, full_matrices=False)
    kept = singular > singular[0] * max(classes.n, classes.d) * np.finfo(np.float64).eps
    indicators = np.eye(classes.n_classes)[classes.labels]
    inside = (indicators.T @ left[:, kept]) ** 2
    outside = np.maximum(classes.counts - inside.sum(axis=1), 0.0)
    if kept.sum() == classes.n:
        outside = np.zeros_like(outside)  # what is left there is rounding
    return _Spectrum(squares=singular[kept] ** 2, inside=inside, outside=outside, n=classes.n)


def _evidence(spectrum: _Spectrum, ratio: Float64[np.ndarray, " c"]) -> Float64[np.ndarray, " c"]:
    """Return ln p(t|a,b)/N for each class at a/b = ratio, with the best b for it.

    b ||t-Fm||^2 + a ||m||^2 = N at that b, and ||t-Fm||^2 + (a/b) ||m||^2 is the energy here.
    """
    shrink = ratio[:, None] / (spectrum.squares + ratio[:, None])
    energy = spectrum.outside + (shrink * spectrum.inside).sum(axis=1)
    log_b = np.log(spectrum.n / energy)
    log_det = np.log1p(spectrum.squares / ratio[:, None]).sum(axis=1)  # ln|I + (b/a) F^T F|
    evidence: Float64[np.ndarray, " c"] = (log_b - 1 - np.log(2 * np.pi) - log_det / spectrum.n) / 2
    return evidence


def _best_ratio(spectrum: _Spectrum) -> Float64[np.ndarray, " c"]:
    """Return the a/b with the largest evidence of each class: a grid, then golden sections.

    The grid is for the case of several maxima; its best point's neighbours bracket the largest.
    """
    low, high = np.log10(spectrum.bounds)
    grid = np.linspace(low, high, int((high - low) * POINTS_PER_DECADE) + 2)
    n_classes = spectrum.outside.size
    scores = np.stack([_evidence(spectrum, np.full(n_classes, 10.0**point)) for point in grid])
    best = scores.argmax(axis=0)
    left, right = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, grid.size - 1)]
    while (right - left).max() > TOLERANCE:
        step = (right - left) * GOLDEN
        falls = _evidence(spectrum, 10 ** (right - step)) >= _evidence(
            spectrum, 10 ** (left + step)
        )
        left, right = np.where(falls, left, right - step), np.where(falls, left + step, right)
    ratio: Float64[np.ndarray, " c"] = 10 ** ((left + right) / 2)
    return ratio
