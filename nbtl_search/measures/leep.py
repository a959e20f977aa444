"""LEEP: how well the source classifier's own predictions foretell the target's labels.

    LEEP = 1/n sum_i ln sum_z P(y_i|z) theta_z(x_i)
    P(y, z) = 1/n sum_{i: y_i = y} theta_z(x_i),   P(y|z) = P(y, z) / P(z)

Nguyen, Hassner, Seeger and Archambeau 2020, "LEEP: a new measure to evaluate transferability of
learned representations", arXiv 2002.12462.
"""

import numpy as np
from jaxtyping import Float, Int

from nbtl_search.measures.classes import Classes, classes_of
from nbtl_search.spec.diagnosis import Measured

# What a softmax in half precision may miss of one; anything beyond is no distribution.
ROW_SUM_TOLERANCE = 1e-2


def leep(
    source_probabilities: Float[np.ndarray, "n z"], labels: Int[np.ndarray, " n_labels"]
) -> Measured:
    """Return the mean log-likelihood of the labels given the source classifier's predictions.

        LEEP = 1/n sum_i ln sum_z P(y_i|z) theta_z(x_i),   -H(Y) <= LEEP <= 0, in nats

    A source class z that no image has any probability of says nothing: its P(y|z), which is 0/0,
    counts as 0 and meets a theta_z of 0. `null` is -H(Y), which a constant theta gives exactly;
    a theta that varies by chance gives more, the more source classes and the fewer images.

    Source: Nguyen et al. 2020, arXiv 2002.12462.

    Args:
        source_probabilities: theta, the softmax over the source classes; rows sum to 1, and are
            divided by their sum.
        labels: Target classes.
    """
    classes = classes_of(source_probabilities, labels, drop_constant=False)
    reason = classes if isinstance(classes, str) else not_probabilities(classes)
    if isinstance(classes, str) or reason:
        return Measured(name="leep", reason=reason)
    theta = classes.features / classes.features.sum(axis=1, keepdims=True)
    of_class = np.eye(classes.n_classes)[classes.labels]
    joint = of_class.T @ theta  # n P(y, z)
    marginal = joint.sum(axis=0)  # n P(z)
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    likelihood = np.einsum("iz,iz->i", conditional[classes.labels], theta)
    return Measured(
        name="leep",
        value=min(0.0, float(np.mean(np.log(likelihood)))),  # rounding may pass ln 1
        null=-label_entropy(classes),
        settings={"n_source_classes": theta.shape[1]},
    )


def label_entropy(classes: Classes) -> float:
    """Return H(Y), the entropy of the labels in nats.

    Raises:
        Nothing.
    """
    prior = classes.counts / classes.n
    return float(-np.sum(prior * np.log(prior)))


def not_probabilities(classes: Classes) -> str:
    """Return why the rows of the features are no distributions; nothing if they are.

    Raises:
        Nothing.
    """
    lowest = float(classes.features.min())
    if lowest < 0:
        return f"source probabilities must be >= 0, got {lowest:.3g}; give the softmax, not logits"
    sums = classes.features.sum(axis=1)
    worst = float(sums[np.argmax(np.abs(sums - 1))])
    if abs(worst - 1) > ROW_SUM_TOLERANCE:
        return f"source probabilities must sum to 1 per row, got {worst:.6g}; give the softmax"
    return ""
