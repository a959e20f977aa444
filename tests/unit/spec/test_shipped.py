"""The studies that come with the package."""

import pytest

from nbtl_search import space
from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials, StudySpec
from nbtl_search.spec.study import shipped_studies, shipped_study

NAMES = ("aircraft", "caltech256", "cars", "dtd", "folder", "textures")
PAPER = {
    "aircraft": Dials(
        reinit_layers=3, lr_high=0.025, lr_head_ratio=0.4, n_low=8, lr_low_ratio=0.4, beta=5e-4
    ),
    "caltech256": Dials(lr_high=0.0025, n_l2sp=22, alpha=0.01, beta=0.01),
    "cars": Dials(lr_high=0.025, n_low=8, lr_low_ratio=0.4, beta=5e-4),
    "dtd": Dials(reinit_layers=2, lr_high=0.002, n_l2sp=14, alpha=0.001, beta=0.001),
}


def test_all_are_there():
    assert tuple(shipped_studies()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_parses_and_is_named_after_its_dataset(name):
    spec = StudySpec.parse(shipped_study(name))
    assert spec.name == spec.data.dataset == name
    assert spec.description
    assert all(known.reason for known in spec.search.known)


@pytest.mark.parametrize("n_blocks", [12, 19, 22, 54])
@pytest.mark.parametrize("name", NAMES)
def test_its_known_recipes_lie_in_its_space(name, n_blocks):
    search = StudySpec.parse(shipped_study(name)).search
    built = space.build(search, n_blocks=n_blocks)
    for known in search.known:
        assert space.outside(built, space.known_dials(known, space=built)) == []


@pytest.mark.parametrize("name", sorted({*NAMES} - {"folder"}))
def test_its_default_is_binary(name):
    search = StudySpec.parse(shipped_study(name)).search
    dials = space.known_dials(search.known[0], space=space.build(search, n_blocks=22))
    binary = space.build(search.replace(space="binary", rows={}), n_blocks=22)
    assert space.outside(binary, dials) == []


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_best_is_as_printed(name):
    """Plested, Shen and Gedeon (2021), table 6; plain L2's beta is the code's."""
    search = StudySpec.parse(shipped_study(name)).search
    best = next(known for known in search.known if known.name == "paper-best")
    assert space.known_dials(best, space=space.build(search, n_blocks=22)) == PAPER[name]


def test_an_unknown_one_names_the_known_ones():
    with pytest.raises(SpecError, match=r"aircraft, .*textures; got 'dtdd'"):
        shipped_study("dtdd")
