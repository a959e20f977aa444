"""The search space: bounds, conditions, changes, and points that lie inside."""

import hypothesis.strategies as st
import optuna
import pytest
from hypothesis import given

from nbtl_search import space
from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials, KnownRecipe, Row, SearchSettings

BLOCKS = st.integers(1, 60)
NAMES = st.sampled_from(sorted(space.SPACES))


class Drawn:
    """A trial whose suggestions hypothesis draws."""

    def __init__(self, data):
        self.data = data
        self.names = []

    def suggest_float(self, name, low, high, *, log=False):  # noqa: ARG002
        self.names.append(name)
        return self.data.draw(st.floats(low, high))

    def suggest_int(self, name, low, high):
        self.names.append(name)
        return self.data.draw(st.integers(low, high))

    def suggest_categorical(self, name, choices):
        self.names.append(name)
        return self.data.draw(st.sampled_from(choices))


@given(data=st.data(), name=NAMES, n_blocks=BLOCKS)
def test_what_is_suggested_lies_inside_and_names_only_active_rows(data, name, n_blocks):
    searched = space.build(SearchSettings(space=name), n_blocks=n_blocks)
    trial = Drawn(data)
    dials = space.suggest(searched, trial)
    assert space.outside(searched, dials) == []
    assert list(space.params_of(searched, dials)) == trial.names
    assert ("alpha" in trial.names) == (dials.n_l2sp > dials.frozen_layers)
    if name != "binary":
        assert ("lr_low_ratio" in trial.names) == (dials.n_low > dials.frozen_layers)
    if dials.n_l2sp <= dials.frozen_layers:
        assert dials.alpha == 0


@given(data=st.data(), n_blocks=BLOCKS)
def test_every_binary_setting_is_a_point_of_the_paper_space(data, n_blocks):
    binary = space.build(SearchSettings(space="binary"), n_blocks=n_blocks)
    paper = space.build(SearchSettings(space="paper"), n_blocks=n_blocks)
    assert space.outside(paper, space.suggest(binary, Drawn(data))) == []


def test_the_paper_space_of_inception_v4_is_the_papers():
    rows = {row.name: row.domain for row in space.build(SearchSettings(), n_blocks=22).rows}
    assert rows["reinit_layers"] == space.Int(low=1, high=3)
    assert rows["lr_high"] == space.Float(low=5e-4, high=5e-2, log=True)
    assert rows["lr_low_ratio"] == space.Float(low=0.04, high=1, log=True)
    assert rows["lr_head_ratio"] == space.Float(low=0.1, high=10, log=True)
    assert rows["n_low"] == space.Int(low=0, high=18)
    assert rows["n_l2sp"] == space.Int(low=0, high=22)
    assert rows["alpha"] == rows["beta"] == space.Float(low=1e-5, high=1e-1, log=True)


@given(name=NAMES, n_blocks=BLOCKS, n=st.integers(0, 20), seed=st.integers(0, 2**31))
def test_a_design_is_inside_distinct_and_repeatable(name, n_blocks, n, seed):
    searched = space.build(SearchSettings(space=name), n_blocks=n_blocks)
    points = space.design(searched, n=n, seed=seed)
    assert points == space.design(searched, n=n, seed=seed)
    assert len({tuple(sorted(point.items())) for point in points}) == n
    for point in points:
        assert space.outside(searched, space.dials_of(searched, point)) == []


def test_a_design_is_what_optuna_takes_as_given():
    searched = space.build(SearchSettings(), n_blocks=22)
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    (point,) = space.design(searched, n=1, seed=3)
    study.enqueue_trial(point)
    assert space.params_of(searched, space.suggest(searched, study.ask())) == point


def test_rows_are_changed_fixed_and_added():
    rows = {
        "lr_high": Row(low=1e-3, high=2e-3),
        "reinit_layers": Row(fixed=2),
        "n_low": Row(high="6/22"),
        "n_l2sp": Row(options=(0, "14/22", "all")),
        "momentum": Row(low=0.0, high=0.95),
    }
    searched = space.build(SearchSettings(rows=rows), n_blocks=11)
    found = {row.name: row.domain for row in searched.rows}
    assert found["lr_high"] == space.Float(low=1e-3, high=2e-3, log=True)
    assert searched.fixed["reinit_layers"] == 2
    assert found["n_low"] == space.Int(low=0, high=3)
    assert found["n_l2sp"] == space.Choice(options=(0, 7, 11))
    assert found["momentum"] == space.Float(low=0.0, high=0.95)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"lr_hi": Row(low=1)}, "no dial 'lr_hi'"),
        ({"lr_high": Row(low=1.0)}, "low <= high"),
        ({"lr_high": Row(low=0.0)}, "low > 0"),
        ({"n_low": Row(low=0.5)}, "whole numbers"),
        ({"n_low": Row(high="some")}, "'all' or a fraction"),
        ({"reinit_layers": Row(fixed=0)}, "reinit_layers"),
    ],
)
def test_changes_that_leave_no_sense_are_refused(rows, says):
    with pytest.raises(SpecError, match=says):
        space.build(SearchSettings(rows=rows), n_blocks=22)


def test_a_known_recipe_counts_blocks_of_any_network():
    known = KnownRecipe(name="dtd", dials={"reinit_layers": 2, "n_l2sp": "14/22", "n_low": "all"})
    dials = space.known_dials(known, space=space.build(SearchSettings(), n_blocks=18))
    assert (dials.n_l2sp, dials.n_low) == (11, 18)


def test_a_known_recipe_with_an_unknown_dial_is_refused_by_name():
    known = KnownRecipe(name="mine", dials={"reinit_layer": 2})
    with pytest.raises(SpecError, match=r"'mine'.*did you mean 'reinit_layers'"):
        space.known_dials(known, space=space.build(SearchSettings(), n_blocks=18))


def test_a_point_outside_is_named_and_only_its_inner_part_is_reported():
    searched = space.build(SearchSettings(), n_blocks=22)
    dials = Dials(lr_high=1.0, beta=1e-3)
    assert space.outside(searched, dials) == [
        "lr_high = 1.0 is not in Float(low=0.0005, high=0.05, log=True)"
    ]
    assert "lr_high" not in space.params_of(searched, dials)
