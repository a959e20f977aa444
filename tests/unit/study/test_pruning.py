"""Asynchronous successive halving, as pure functions."""

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from nbtl_search.spec import Pruning
from nbtl_search.study.pruning import goes_on, rungs

ACCURACIES = st.lists(st.floats(0, 100), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("epochs", "n_updates", "expected"),
    [
        (8, 12, (5,)),  # 60 updates come after both fractions
        (8, 7, ()),  # 60 updates come after the schedule
        (40, 100, (10, 20)),
        (12, 60, (3, 6)),
        (4, 1000, (3,)),
        (3, 1000, ()),
    ],
)
def test_rungs_lie_at_fractions_but_not_before_they_are_fair(epochs, n_updates, expected):
    assert rungs(Pruning(), epochs=epochs, n_updates=n_updates) == expected


def test_no_rungs_no_pruning():
    assert rungs(Pruning(rungs=()), epochs=100, n_updates=100) == ()


@given(peers=ACCURACIES)
def test_the_best_always_goes_on(peers):
    assert goes_on(max(peers), peers, pruning=Pruning(min_peers=1))


@given(peers=ACCURACIES, tenths=st.integers(11, 100))
@example(peers=[float(n) for n in range(33)], tenths=11)
@example(peers=[float(n) for n in range(11)], tenths=11)
def test_of_different_values_one_in_so_many_goes_on(peers, tenths):
    peers = sorted(set(peers))
    pruning = Pruning(min_peers=1, reduction=tenths / 10)
    n_on = sum(goes_on(value, peers, pruning=pruning) for value in peers)
    assert n_on == max(1, 10 * len(peers) // tenths)


@given(peers=ACCURACIES, mine=st.floats(0, 100), better=st.floats(0, 100))
def test_a_better_value_never_fares_worse(peers, mine, better):
    low, high = sorted((mine, better))
    if goes_on(low, [*peers, low], pruning=Pruning()):
        assert goes_on(high, [*peers, high], pruning=Pruning())


def test_few_peers_stop_nobody():
    assert goes_on(0.0, [100.0, 0.0], pruning=Pruning(min_peers=3))
    assert not goes_on(0.0, [100.0, 50.0, 0.0], pruning=Pruning(min_peers=3))
