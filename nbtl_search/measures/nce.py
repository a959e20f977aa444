"""NCE: what the source classifier's answer leaves open about the target's label.

    NCE = -H(Y|Z) = 1/n sum_{y,z} n_yz ln (n_yz / n_z),   Z = argmax of the source classifier

Tran, Nguyen and Hassner 2019, "Transferability and hardness of supervised classification tasks",
arXiv 1908.08142.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import xlogy

from nbtl_search.measures.classes import classes_of
from nbtl_search.measures.leep import label_entropy, not_probabilities
from nbtl_search.spec.diagnosis import Measured


def nce(
    source: Float[np.ndarray, "n z"] | Int[np.ndarray, " n"], labels: Int[np.ndarray, " n_labels"]
) -> Measured:
    """Return the negative conditional entropy of the labels given the source's answers.

        NCE = -H(Y|Z) = sum_{y,z} P(y, z) ln P(y|z)   <= 0, in nats

    with 0 ln 0 = 0 exactly, without a small number added. `null` is -H(Y), which a source that
    always answers the same gives exactly; one that answers by chance gives more, the more source
    classes and the fewer images.

    Source: Tran, Nguyen and Hassner 2019, arXiv 1908.08142.

    Args:
        source: The softmax over the source classes, of which the largest is taken (the first of
            equals); or the answers themselves, one whole number per image.
        labels: Target classes.
    """
    rows = source if source.ndim == 2 else source[:, None].astype(np.float64)
    classes = classes_of(rows, labels, drop_constant=False)
    reason = classes if isinstance(classes, str) else ""
    if not isinstance(classes, str) and source.ndim == 2:
        reason = not_probabilities(classes)
    if isinstance(classes, str) or reason:
        return Measured(name="nce", reason=reason)
    answers = np.argmax(source, axis=1) if source.ndim == 2 else source
    given, z = np.unique(answers, return_inverse=True)
    cells = np.bincount(
        z * classes.n_classes + classes.labels, minlength=given.size * classes.n_classes
    )
    n_zy = cells.reshape(given.size, classes.n_classes)
    n_z = n_zy.sum(axis=1, keepdims=True)
    return Measured(
        name="nce",
        value=float(np.sum(xlogy(n_zy, n_zy / n_z)) / classes.n) + 0.0,  # never -0.0
        null=-label_entropy(classes),
        settings={"n_answers": given.size},
    )
