"""Groups of dials: each dial is in one, and a point without one can be trained."""

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from nbtl_search.space import GROUPS, Space, effective, impossible, removals
from nbtl_search.spec import Dials

N_BLOCKS = 6
SPACE = Space(n_blocks=N_BLOCKS, rows=())
POINTS = st.builds(
    Dials,
    source_head=st.sampled_from(["replace", "keep"]),
    head_start=st.sampled_from(["random", "logistic"]),
    reinit_layers=st.integers(1, 4),
    frozen_layers=st.integers(0, N_BLOCKS),
    lr_high=st.sampled_from([0.01, 0.1]),
    n_low=st.integers(0, N_BLOCKS),
    lr_low_ratio=st.sampled_from([0.1, 1.0]),
    n_l2sp=st.integers(0, N_BLOCKS),
    alpha=st.sampled_from([0.0, 0.1]),
    delta=st.sampled_from(["off", "attention"]),
    delta_alpha=st.sampled_from([0.01, 0.1]),
    distill=st.sampled_from([0.0, 4.0]),
    dtnh=st.sampled_from(["off", "conflict"]),
    decay_updates=st.sampled_from([0, 30]),
    decay_factor=st.sampled_from([0.5, 0.9]),
)


def groups_of(removal):
    return (removal.group, *removal.along)


def test_each_dial_is_in_one_group():
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(Dials.model_fields)


@given(ours=POINTS, theirs=st.just(Dials()) | POINTS)
def test_each_point_without_a_group_differs_and_can_be_trained(ours, theirs):
    assume(not impossible(ours, n_blocks=N_BLOCKS))
    assume(not impossible(theirs, n_blocks=N_BLOCKS))
    whole, last = effective(ours), effective(theirs)
    found = removals(ours, theirs, space=SPACE)
    differing = {name for name in Dials.model_fields if dict(whole)[name] != dict(last)[name]}
    owned = [name for one in found for name in GROUPS[one.group] if name in differing]
    assert sorted(owned) == sorted(differing), "the groups share out what differs"
    for one in found:
        assert one.dials != whole
        assert impossible(one.dials, n_blocks=N_BLOCKS) == []
        assert effective(one.dials) == one.dials
        taken = {name for group in groups_of(one) for name in GROUPS[group]}
        moved = {**dict(whole), **{name: dict(last)[name] for name in taken}}
        assert effective(Dials.parse(moved)) == one.dials, "and nothing else is changed"


def test_the_default_has_no_groups_to_lose():
    assert removals(Dials(), Dials(), space=SPACE) == []
    assert removals(Dials(alpha=0.1), Dials(), space=SPACE) == [], "without L2-SP blocks"


def test_momentum_goes_with_the_rate():
    (one,) = removals(Dials(momentum=0.5), Dials(), space=SPACE)
    assert (one.group, one.along, one.dials) == ("learning rate", (), Dials())


@pytest.mark.parametrize(
    ("more", "along"), [({}, ("DTNH",)), ({"delta": "plain"}, ()), ({"distill": 1.0}, ())]
)
def test_without_the_last_pull_its_projection_goes_too(more, along):
    ours = Dials(n_l2sp=4, alpha=0.1, dtnh="conflict", **more)
    found = {one.group: one for one in removals(ours, Dials(), space=SPACE)}
    assert found["L2-SP"].along == along
    assert found["L2-SP"].dials == Dials(**more, dtnh="off" if along else "conflict")
    assert found["DTNH"].along == ()
    assert found["DTNH"].dials == Dials(n_l2sp=4, alpha=0.1, **more)


def test_a_default_that_is_no_plain_one_gives_its_own_values():
    default = Dials(reinit_layers=2, n_l2sp=5, alpha=0.01)
    found = removals(Dials(source_head="keep"), default, space=SPACE)
    assert [(one.group, one.along) for one in found] == [
        ("new layers", ("source classifier",)),
        ("source classifier", ()),
        ("L2-SP", ()),
    ]
    assert [one.dials for one in found] == [
        Dials(reinit_layers=2),
        Dials(),
        Dials(source_head="keep", n_l2sp=5, alpha=0.01),
    ]
