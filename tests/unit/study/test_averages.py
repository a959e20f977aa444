import math

import pytest

from nbtl_search.spec import Dials
from nbtl_search.spec.verdict import Candidate
from nbtl_search.study import averages

ONE, TWO = Dials(), Dials(reinit_layers=2)


def all_averages(dials, value_of):
    """Return every average that is tried, in order, where each is worth `value_of`."""
    means: dict[Candidate, float] = {(trial,): value_of((trial,)) for trial in dials}
    tried = []
    while wanted := averages.next_averages(dials, means):
        assert not any(average in means for average in wanted), "none is tried twice"
        means |= {average: value_of(average) for average in wanted}
        tried += wanted
    return tried


def test_each_next_best_is_added_and_kept_if_the_average_gets_better():
    singles = {1: 70.0, 2: 69.0, 3: 68.0, 4: 67.0}
    worth = {(1, 2): 70.0, (1, 3): 70.1, (1, 3, 4): 71.0}
    tried = all_averages(
        dict.fromkeys(singles, ONE), lambda key: worth[key] if len(key) > 1 else singles[key[0]]
    )
    assert tried == [(1, 2), (1, 3), (1, 3, 4)], "two that add nothing are left out"


def test_an_average_that_failed_is_left_out():
    singles = {1: 70.0, 2: 69.0, 3: 68.0}
    worth = {(1, 2): -math.inf, (1, 3): 72.0}
    tried = all_averages(
        dict.fromkeys(singles, ONE), lambda key: worth[key] if len(key) > 1 else singles[key[0]]
    )
    assert tried == [(1, 2), (1, 3)]


def test_of_equals_the_lower_number_comes_first():
    assert averages.next_averages({7: ONE, 2: ONE}, {(7,): 70.0, (2,): 70.0}) == [(2, 7)]


@pytest.mark.parametrize(
    "other", [TWO, Dials(head_start="logistic"), Dials(source_head="keep")], ids=str
)
def test_only_what_starts_from_the_same_weights_is_averaged(other):
    assert averages.next_averages({0: ONE, 1: other}, {(0,): 70.0, (1,): 71.0}) == []


def test_groups_go_on_side_by_side():
    dials = {0: ONE, 1: TWO, 2: TWO, 3: ONE.replace(lr_high=0.01)}
    means: dict[Candidate, float] = {(0,): 70.0, (1,): 71.0, (2,): 72.0, (3,): 69.0}
    assert averages.next_averages(dials, means) == [(2, 1), (0, 3)]


def test_the_mean_is_of_all_seeds_or_of_none():
    assert averages.mean_of([70.0, 71.0], n=2) == 70.5
    assert averages.mean_of([70.0], n=2) == -math.inf
