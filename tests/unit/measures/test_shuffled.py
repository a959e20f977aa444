import numpy as np
import pytest

from nbtl_search.measures.classes import with_null
from nbtl_search.measures.gbc import gbc
from nbtl_search.measures.leep import leep
from nbtl_search.measures.transrate import transrate


def blobs(rng, *, apart, n=40, d=6, n_classes=4):
    labels = np.arange(n) % n_classes
    features = rng.normal(size=(n, d))
    features[:, :n_classes] += apart * np.eye(n_classes)[labels]
    return features, labels


def gap(found):
    assert found.value is not None
    assert found.null is not None
    return found.value - found.null


@pytest.mark.parametrize("measure", [gbc, transrate])
def test_features_that_say_nothing_give_about_the_null(measure):
    rng = np.random.default_rng(5)
    found = [with_null(measure, *blobs(rng, apart=0.0)) for _ in range(10)]
    gaps = [gap(one) for one in found]
    assert abs(np.mean(gaps)) < 3 * np.std(gaps, ddof=1) / np.sqrt(len(gaps))


@pytest.mark.parametrize("measure", [gbc, transrate])
def test_features_that_tell_the_classes_apart_are_above_it(measure):
    features, labels = blobs(np.random.default_rng(5), apart=5.0)
    kept = features.copy(), labels.copy()
    found = with_null(measure, features, labels)
    assert found.value == measure(features, labels).value
    assert gap(found) > 0
    assert found == with_null(measure, features, labels)
    assert np.array_equal(kept[0], features)
    assert np.array_equal(kept[1], labels)
    assert found.settings["null_by"] == "permutation"


def test_the_bound_of_a_constant_source_gives_way_to_what_chance_really_gives():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    source = rng.dirichlet(np.ones(20), size=60)
    found = with_null(leep, source, labels)
    assert leep(source, labels).null == pytest.approx(-np.log(3))
    assert found.null is not None
    assert found.null > -np.log(3)
    assert gap(found) == pytest.approx(0, abs=0.2)


def test_without_a_value_there_is_no_null():
    found = with_null(gbc, np.ones((4, 2)), np.zeros(4, dtype=np.int64))
    assert (found.value, found.null) == (None, None)
    assert found.reason
