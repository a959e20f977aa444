"""Conditions: what is left of one where dials never change means the same."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nbtl_search.space import CONDITIONS, Choice, Int

VALUES = st.fixed_dictionaries(
    {
        "source_head": st.sampled_from(["replace", "keep"]),
        "head_start": st.sampled_from(["random", "logistic"]),
        "frozen_layers": st.integers(0, 3),
        "n_low": st.integers(0, 3),
        "n_l2sp": st.integers(0, 3),
        "alpha": st.sampled_from([0.0, 0.1]),
        "delta": st.sampled_from(["off", "plain", "attention"]),
        "distill": st.sampled_from([0.0, 4.0]),
        "decay_updates": st.sampled_from([0, 30]),
    }
)


@given(values=VALUES, data=st.data(), name=st.sampled_from(sorted(CONDITIONS)))
def test_what_is_held_can_be_put_in(values, data, name):
    names = data.draw(st.sets(st.sampled_from(sorted(values))))
    condition = CONDITIONS[name]
    left = condition.given({name: values[name] for name in names})
    assert (left if isinstance(left, bool) else left.holds(values)) == condition.holds(values)
    if names == set(values):
        assert isinstance(left, bool)


@pytest.mark.parametrize(
    "domain", [Int(low=0, high=8, usual=0.75), Choice(options=tuple(range(9)))]
)
def test_the_usual_value_has_its_share_and_the_others_share_the_rest(domain):
    n = 1200
    found = [domain.at((index + 0.5) / n) for index in range(n)]
    usual = domain.usual or 1 / 9
    assert found.count(0) / n == pytest.approx(usual, abs=1 / n)
    for value in range(1, 9):
        assert found.count(value) / n == pytest.approx((1 - usual) / 8, abs=2 / n)
    assert found == sorted(found)
