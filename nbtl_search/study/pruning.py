"""Early stopping of weak trials, by asynchronous successive halving of the stopping type.

Li et al. 2020, arXiv 1810.05934, section 3. A trial that reaches a rung goes on if it is among the
best 1/reduction of all that have reached it; otherwise it stops there for good. Nobody waits for
anybody.

The first rung comes late enough to be fair. Newly initialised batch norm keeps a network at
chance for its first updates, until its running statistics have settled: among 26 fine-tunes of
MobileNetV2 on ten DTD classes the third best stood at chance for two epochs of 12 updates. So no
rung lies before `min_epochs` and `min_updates`; comparing only trials with equally many new
layers would need several times the trials before anything could be stopped.
"""

import math
from collections.abc import Collection

from nbtl_search.spec import Pruning


def rungs(pruning: Pruning, *, epochs: int, n_updates: int) -> tuple[int, ...]:
    """Return the epochs (1-based, rising) after which trials are compared.

    Args:
        pruning: fractions and floors.
        epochs: length of the schedule.
        n_updates: updates in an epoch.
    """
    floor = max(1, pruning.min_epochs, math.ceil(pruning.min_updates / n_updates))
    wanted = {max(floor, math.ceil(fraction * epochs)) for fraction in pruning.rungs}
    return tuple(sorted(epoch for epoch in wanted if epoch < epochs))


def goes_on(mine: float, peers: Collection[float], *, pruning: Pruning) -> bool:
    """Tell whether a trial with accuracy `mine` goes on from a rung.

    Args:
        mine: best validation accuracy until the rung.
        peers: the same of every trial that has reached the rung, this one included.
        pruning: reduction and the number of peers below which nothing is stopped.
    """
    if len(peers) < pruning.min_peers:
        return True
    # 33 / 1.1 is 30 to whoever wrote 1.1, and just below it in floating point.
    n_promoted = max(1, math.floor(len(peers) / pruning.reduction + 1e-9))
    n_better = sum(value > mine for value in peers)
    return n_better < n_promoted
