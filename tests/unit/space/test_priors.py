"""Priors: start-up points fall more often where advice points, and everywhere still."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import qmc

from nbtl_search import space
from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials, Prior, SearchSettings

N = 2000
GRID = [(index + 0.5) / N for index in range(N)]
WEIGHTS = st.floats(0, 1)
ENDS = st.sampled_from([0.0, 1e-12, 0.5, 1 - 2**-53])
UNITS = st.floats(0, 1, exclude_max=True) | ENDS


def at(domain, u, prior, *, name="n_l2sp", n_blocks=22):
    row = space.SpaceRow(name=name, domain=domain)
    return space.value_at(row, u, prior=prior, n_blocks=n_blocks)


@st.composite
def floats(draw):
    low, high = sorted((draw(st.floats(1e-4, 1e2)), draw(st.floats(1e-4, 1e2))))
    return space.Float(low=low, high=high, log=draw(st.booleans()))


@st.composite
def ints(draw):
    low = draw(st.integers(-5, 40))
    return space.Int(low=low, high=low + draw(st.integers(0, 40)))


def choices():
    numbers = st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True)
    return numbers.map(lambda options: space.Choice(options=tuple(options)))


@st.composite
def priors(draw, values):
    low, high = sorted((draw(values), draw(values)))
    return Prior(low=low, high=high, weight=draw(WEIGHTS))


@given(
    domain=floats() | ints(),
    prior=priors(st.floats(1e-4, 1e2)) | priors(st.integers(-9, 90)),
    us=st.tuples(UNITS, UNITS),
)
def test_numbers_stay_inside_and_rise_with_the_quantile(domain, prior, us):
    first, second = (at(domain, u, prior) for u in sorted(us))
    assert first in domain
    assert second in domain
    assert first <= second


@given(domain=choices(), prior=priors(st.integers(0, 30)), u=UNITS)
def test_options_stay_options(domain, prior, u):
    assert at(domain, u, prior) in domain


@settings(max_examples=50)
@given(domain=floats(), parts=st.tuples(UNITS, UNITS), weight=WEIGHTS)
def test_the_share_inside_is_the_weight_and_the_rests_part(domain, parts, weight):
    if domain.high < domain.low * 1.01:
        return
    a, b = sorted(parts)
    prior = Prior(low=domain.at(a), high=domain.at(b), weight=weight)
    inside = sum(prior.low <= at(domain, u, prior) <= prior.high for u in GRID) / N
    kept = min(weight, space.MAX_WEIGHT)
    expected = kept + (1 - kept) * (b - a)
    # Where the range shrinks to a point only the weight is left; one point of the grid either way.
    assert inside == pytest.approx(expected, abs=2.1 / N)


@settings(max_examples=50)
@given(domain=ints() | choices(), prior=priors(st.integers(-5, 80)))
def test_every_whole_number_and_option_keeps_its_share(domain, prior):
    options = (
        domain.options
        if isinstance(domain, space.Choice)
        else tuple(range(domain.low, domain.high + 1))
    )
    found = [at(domain, u, prior) for u in GRID]
    inside = [option for option in options if prior.low <= option <= prior.high]
    weight = min(prior.weight, space.MAX_WEIGHT) if inside else 0
    for option in options:
        share = (1 - weight) / len(options) + (weight / len(inside) if option in inside else 0)
        assert found.count(option) / N == pytest.approx(share, abs=1.1 / N)


def test_a_weight_of_one_still_reaches_every_value():
    prior = Prior(low="14/22", high="all", weight=1.0)
    found = [at(space.Int(low=0, high=22), u, prior) for u in GRID]
    assert set(found) == set(range(23))
    inside = sum(value >= 14 for value in found) / N
    assert inside == pytest.approx(0.95 + 0.05 * 9 / 23, abs=2 / N)


def test_bounds_count_blocks_of_any_network():
    prior = Prior(low="14/22", high="all", weight=0.9)
    domain = space.Int(low=0, high=18)
    found = [at(domain, u, prior, n_blocks=18) for u in GRID]
    assert sum(value >= 11 for value in found) / N == pytest.approx(0.9 + 0.1 * 8 / 19, abs=2 / N)


def test_the_binary_choice_leans_to_the_option_inside():
    domain = space.Choice(options=(0, 22))
    found = [at(domain, u, Prior(low="14/22", high="all", weight=0.7)) for u in GRID]
    assert found.count(22) / N == pytest.approx(0.85, abs=1 / N)


def test_logarithmic_rates_are_even_in_their_logarithm_inside():
    domain = space.Float(low=5e-4, high=5e-2, log=True)
    prior = Prior(low=1e-3, high=1e-2, weight=0.95)
    found = [at(domain, u, prior, name="lr_high") for u in GRID]
    inside = [value for value in found if 1e-3 <= value <= 1e-2]
    middle = sum(value <= 10**-2.5 for value in inside) / len(inside)
    assert middle == pytest.approx(0.5, abs=2 / N)


@pytest.mark.parametrize(
    ("domain", "low", "high"),
    [
        (space.Float(low=1.0, high=2.0), 3.0, 4.0),
        (space.Float(low=1.0, high=1.0), 0.0, 4.0),
        (space.Int(low=1, high=3), 4, 9),
        (space.Int(low=1, high=3), 1.2, 1.8),
        (space.Choice(options=(0, 22)), 1, 21),
        (space.Choice(options=("a", "b")), 0, 9),
    ],
)
def test_a_prior_that_does_not_meet_the_row_is_ignored(domain, low, high):
    prior = Prior(low=low, high=high, weight=0.7)
    assert [at(domain, u, prior) for u in GRID] == [domain.at(u) for u in GRID]


@pytest.mark.parametrize(("low", "high"), [(2, 1), ("all", 0), ("some", 3)])
def test_bounds_that_make_no_sense_are_refused(low, high):
    with pytest.raises(SpecError, match=r"'all' or a fraction|low <= high"):
        at(space.Int(low=0, high=22), 0.5, Prior(low=low, high=high))


def test_names_of_counts_are_no_rates():
    with pytest.raises(SpecError, match="lr_high must have numbers"):
        at(space.Float(low=1.0, high=2.0), 0.5, Prior(low="all", high=1.0), name="lr_high")


PRIOR = {
    "lr_high": Prior(low=1e-3, high=1e-2, weight=0.7),
    "n_l2sp": Prior(low="14/22", high="all", weight=0.7),
    "momentum": Prior(low=0.5, high=0.6),
    "no_such_dial": Prior(low=0, high=1),
}


@pytest.mark.parametrize("prior", [None, {}])
@pytest.mark.parametrize("name", ["binary", "paper"])
def test_a_design_without_a_prior_is_bit_for_bit_sobols(name, prior):
    searched = space.build(SearchSettings(space=name), n_blocks=22)
    points = qmc.Sobol(len(searched.rows), scramble=True, rng=5).random_base2(4)
    design = space.design(searched, n=16, seed=5, prior=prior)
    assert design == space.design(searched, n=16, seed=5)
    for point, us in zip(design, points, strict=True):
        at_u = {row.name: row.domain.at(u) for row, u in zip(searched.rows, us, strict=True)}
        assert point == {dial: at_u[dial] for dial in point}


@settings(max_examples=25)
@given(
    name=st.sampled_from(["binary", "paper"]),
    n_blocks=st.integers(1, 60),
    n=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_a_design_with_a_prior_is_inside_and_repeatable(name, n_blocks, n, seed):
    searched = space.build(SearchSettings(space=name), n_blocks=n_blocks)
    points = space.design(searched, n=n, seed=seed, prior=PRIOR)
    assert len(points) == n
    assert points == space.design(searched, n=n, seed=seed, prior=PRIOR)
    for point in points:
        assert "momentum" not in point
        assert space.outside(searched, Dials.parse({**searched.fixed, **point})) == []


def test_a_design_leans_where_the_prior_points():
    searched = space.build(SearchSettings(), n_blocks=22)
    points = space.design(searched, n=256, seed=0, prior=PRIOR)
    rates = np.array([point["lr_high"] for point in points])
    inside = np.mean((rates >= 1e-3) & (rates <= 1e-2))
    assert inside == pytest.approx(0.7 + 0.3 / 2, abs=0.01)  # one decade of two is the half
    l2sp = np.array([point["n_l2sp"] for point in points])
    assert np.mean(l2sp >= 14) == pytest.approx(0.7 + 0.3 * 9 / 23, abs=0.01)


def test_priors_on_dials_held_fixed_are_ignored():
    searched = space.build(SearchSettings(space="binary"), n_blocks=22)
    prior = {"reinit_layers": Prior(low=3, high=3), "n_low": Prior(low="8/22", high="10/22")}
    assert space.design(searched, n=8, seed=1, prior=prior) == space.design(searched, n=8, seed=1)
