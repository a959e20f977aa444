"""NCE against a loop over the paper's sum, and what must hold of it."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtl_search.measures.nce import nce


def null(*images):
    return nce(*images).null


def value(*images, **settings):
    measured = nce(*images, **settings)
    assert measured.value is not None, measured.reason
    return measured.value


def literal(answers, labels):
    pairs, alone = Counter(zip(answers, labels, strict=True)), Counter(answers)
    return sum(k / len(labels) * math.log(k / alone[z]) for (z, _), k in pairs.items())


images = st.lists(st.tuples(st.integers(-3, 6), st.integers(0, 3)), min_size=2, max_size=40).filter(
    lambda rows: len({y for _, y in rows}) > 1
)


@settings(max_examples=50)
@given(images)
def test_agrees_with_the_papers_sum(rows):
    answers, labels = (list(column) for column in zip(*rows, strict=True))
    measured = nce(np.array(answers), np.array(labels))
    assert measured.value == pytest.approx(literal(answers, labels), abs=1e-12)


@settings(max_examples=50)
@given(images)
def test_lies_between_its_null_and_zero(rows):
    """To know something never makes the label less certain: H(Y|Z) <= H(Y)."""
    answers, labels = np.array(rows).T
    assert null(answers, labels) - 1e-12 <= value(answers, labels) <= 0


@settings(max_examples=25)
@given(images, st.randoms(use_true_random=False))
def test_order_and_names_do_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    first = nce(*np.array(rows).T)
    again = nce(np.array([-5 * z for z, _ in shuffled]), np.array([9 - y for _, y in shuffled]))
    assert again.value == pytest.approx(first.value, abs=1e-12)
    assert again.null == pytest.approx(first.null, abs=1e-12)


def test_by_hand():
    # Z = 0 leaves a coin's toss over two images, Z = 1 leaves nothing over the other two.
    measured = nce(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    assert measured.value == pytest.approx(-math.log(2) / 2, abs=1e-15)


def test_probabilities_are_answered_by_their_largest():
    rng = np.random.default_rng(0)
    theta = rng.dirichlet(np.ones(5), size=30)
    labels = rng.integers(3, size=30)
    assert nce(theta, labels) == nce(theta.argmax(axis=1), labels)


def test_a_perfect_source_gives_exactly_zero():
    measured = nce(np.array([4, 4, 9, 2]), np.array([0, 0, 1, 1]))
    assert measured.value == 0.0
    assert str(measured.value) == "0.0"


def test_a_source_of_one_answer_gives_the_null():
    labels = np.array([0, 0, 0, 1, 2, 2])
    measured = nce(np.full(6, 3), labels)
    assert measured.value == pytest.approx(measured.null, abs=1e-15)


@pytest.mark.parametrize(
    ("source", "labels", "said"),
    [
        (np.array([0, 1]), [0, 0], "two classes"),
        (np.array([0, 1, 2]), [0, 1], "one label per image"),
        (np.array([[0.2, 0.2], [0.5, 0.5]]), [0, 1], "sum to 1"),
        (np.array([[math.inf, 0.2], [0.5, 0.5]]), [0, 1], "finite"),
    ],
)
def test_what_has_no_value_has_a_reason(source, labels, said):
    measured = nce(source, np.array(labels))
    assert measured.value is None
    assert said in measured.reason
