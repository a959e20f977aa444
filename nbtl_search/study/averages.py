"""Averages of weights as candidates of a finalisation: which are tried, and in which order.

Runs of several recipes with one seed start from the same weights, new layers included, and their
weights after training can be averaged: one network, better than each, at the cost of one
(Wortsman et al. 2022, "Model soups", arXiv 2203.05482). Chosen greedily as they do: the best recipe
first, then each next one in the order of its accuracy. Unlike theirs an average is judged by its
mean over seeds, as every candidate is, and a recipe that adds nothing is left out, as each has to
be trained again for the test stage.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

from nbtl_search.spec import Dials
from nbtl_search.spec.verdict import Candidate


def next_averages(dials: Mapping[int, Dials], means: Mapping[Candidate, float]) -> list[Candidate]:
    """Return the averages to be tried now; none where all that are worth it have been.

    Args:
        dials: of each trial that ran throughout.
        means: of each candidate known so far; minus infinity for an average that failed.
    """
    best_first = sorted(dials, key=lambda trial: (-means[trial,], trial))
    groups: dict[Hashable, list[int]] = {}
    for trial in best_first:
        groups.setdefault(start_of(dials[trial]), []).append(trial)
    chosen = (_next(group, means) for group in groups.values())
    return [average for average in chosen if average is not None]


def start_of(dials: Dials) -> Hashable:
    """Return what two recipes must share for runs of one seed to start from the same weights."""
    return dials.reinit_layers, dials.head_start, dials.source_head


def _next(group: Sequence[int], means: Mapping[Candidate, float]) -> Candidate | None:
    kept: Candidate = (group[0],)
    for trial in group[1:]:
        larger = (*kept, trial)
        if larger not in means:
            return larger
        if means[larger] > means[kept]:
            kept = larger
    return None


def mean_of(values: Sequence[float], *, n: int) -> float:
    """Return the mean of a candidate's runs; minus infinity where not all `n` ended well."""
    return math.fsum(values) / n if len(values) == n else -math.inf
