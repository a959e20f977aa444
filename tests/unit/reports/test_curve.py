from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtl_search.reports.dashboard.curve import HEIGHT_PX, WIDTH_PX, draw

SVG = "{http://www.w3.org/2000/svg}"


def read(picture):
    return ET.fromstring(picture)  # noqa: S314  (our own)


def points(picture):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in read(picture).iter(f"{SVG}polyline")
    ]


@given(
    values=st.lists(st.floats(0, 100), max_size=40),
    others=st.lists(st.floats(0, 100), max_size=40),
    n_epochs=st.integers(1, 900),
)
def test_every_curve_lies_inside_the_picture(make_curve, values, others, n_epochs):
    picture = draw(make_curve(*values), title="t", n_epochs=n_epochs, reference=make_curve(*others))
    lines = points(picture)
    assert [len(line) for line in lines] == [n for n in (len(others), len(values)) if n]
    for left, top in (place for line in lines for place in line):
        assert 0 <= left <= WIDTH_PX
        assert 0 <= top <= HEIGHT_PX


def test_higher_is_higher_and_later_is_further_right(make_curve):
    (line,) = points(draw(make_curve(10, 60, 55), title="t", n_epochs=10))
    assert line[0][0] < line[1][0] < line[2][0]
    assert line[1][1] < line[2][1] < line[0][1]


def test_the_ring_is_at_the_first_best_epoch(make_curve):
    picture = draw(make_curve(10, 60, 60), title="t", n_epochs=3)
    (line,) = points(picture)
    rings = [c for c in read(picture).iter(f"{SVG}circle") if c.get("stroke")]
    assert [(float(ring.get("cx")), float(ring.get("cy"))) for ring in rings] == [line[1]]


def test_titles_are_escaped():
    hostile = "<script>alert(1)</script>&"
    picture = draw([], title=hostile, n_epochs=3)
    texts = [node.text for node in read(picture).iter(f"{SVG}text")]
    assert hostile in texts
    assert "<script" not in picture


@pytest.mark.parametrize("n_epochs", [1, 2, 7, 30, 40, 100, 800])
def test_epoch_ticks_are_few_and_different(n_epochs):
    nodes = read(draw([], title="t", n_epochs=n_epochs)).iter(f"{SVG}text")
    ticks = [node.text for node in nodes if node.get("text-anchor") == "middle"][:-1]
    assert ticks[0] == "1"
    assert 2 <= len(ticks) <= 12
    assert len(set(ticks)) == len(ticks)


def test_epochs_without_validation_are_left_out(make_curve):
    picture = draw(make_curve(None, 60, None, 70), title="t", n_epochs=4)
    whole = draw(make_curve(60, 60, 70, 70), title="t", n_epochs=4)
    (line,), (all_of_it,) = points(picture), points(whole)
    assert line == [all_of_it[1], all_of_it[3]]
    assert points(draw(make_curve(None, None), title="t", n_epochs=4)) == []
