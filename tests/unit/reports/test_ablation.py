"""An ablation as a table, a picture, a section of the page, and in a terminal of 80 columns."""

import csv
import io

import pytest
from rich.console import Console

from nbtl_search.reports import ablation, figures, traces
from nbtl_search.reports.cost import spending
from nbtl_search.reports.static_figures import files_of
from nbtl_search.reports.terminal.ablation import render
from tests.plausible_ablation import make_ablation


def drawn(found, *, width=80):
    file = io.StringIO()
    Console(file=file, width=width).print(render(found, name="dtd10"))
    return file.getvalue()


def test_the_most_valuable_group_comes_first_and_all_of_them_last():
    rows = ablation.table(make_ablation()).rows
    assert [row["group"] for row in rows] == ["new layers", "L2", "L2-SP", "all of them"]
    assert [row["gain"] for row in rows] == [20.0, 0.5, -4.0, 30.0]
    assert rows[0]["changes"] == "reinit_layers 3, without 1, lr_high 0.0123, without 0.0025"
    assert (rows[0]["without_mean"], rows[0]["n_seeds"]) == (61.0, 2)


def test_a_group_of_which_nothing_is_known_yet_has_no_bar():
    found = make_ablation()
    unknown = found.groups[0].replace(gain=None, need="cannot be told")
    found = found.replace(groups=(unknown, *found.groups[1:]), is_done=False)
    assert [row["group"] for row in ablation.table(found).rows][2] == "new layers"
    (bar,) = ablation.bars(found).data
    assert list(bar.y) == ["L2", "L2-SP", "all of them"]
    assert "go on with: nbtl-search ablate dtd10" in drawn(found)
    assert "4 of 5 runs" in drawn(found.replace(runs=(found.runs[0].replace(state="running"),
        *found.runs[1:])))  # fmt: skip


def test_bars_have_their_intervals_and_colours():
    (bar,) = ablation.bars(make_ablation()).data
    assert list(bar.x) == [20.0, 0.5, -4.0, 30.0]
    assert list(bar.error_x.array) == [3.0] * 4
    assert list(bar.marker.color) == [traces.GREEN, traces.FAINT, traces.ORANGE, traces.GREEN]


def test_the_picture_is_three_files_and_the_numbers_are_in_one():
    files = dict(files_of([figures.of_ablation(make_ablation())]))
    assert set(files) == {"ablation.svg", "ablation.png", "ablation.csv"}
    rows = list(csv.DictReader(io.StringIO(files["ablation.csv"].decode())))
    assert (rows[0]["y"], rows[0]["x"], rows[0]["std"]) == ("new layers", "20.0", "3.0")
    assert "new layers" in files["ablation.svg"].decode()
    bare = figures.of_ablation(make_ablation())
    bare.plot.data[0].error_x.array = None
    assert dict(files_of([bare]))["ablation.png"] != files["ablation.png"], "whiskers are drawn"


def test_what_is_needed_is_said():
    both, *needs = ablation.sentences(make_ablation())
    assert both == (
        "The recipe of paper-best (trial 1) has 81.00 ± 1.41 % on the validation images over 2 "
        "seeds, the default 51.00 ± 1.41 %."
    )
    assert needs == [
        "Needed: new layers.",
        "Harmful: L2-SP.",
        "Cannot be told: L2.",
    ]
    said = list(ablation.sentences(make_ablation(state="failed")))
    assert said[-1].startswith("1 run failed, and what failed runs no more")
    single = make_ablation(gains={"L2": (3.5, "needed")})
    assert list(ablation.sentences(single))[1:] == [
        "They differ in one group only, L2: without it, the default is what is left.",
        "Needed: L2.",
    ]


@pytest.mark.parametrize("name", ["trial 1", "a name of many, many letters " * 4])
def test_it_fits_a_terminal(name):
    found = make_ablation(name=name)
    pulled = found.groups[1].replace(along=("DTNH",), need="cannot be told")
    text = drawn(found.replace(groups=(found.groups[0], pulled, found.groups[2])))
    assert max(map(len, text.splitlines())) <= 80
    assert "L2-SP and DTNH" in text
    assert "+20.00 [+17.00, +23.00]" in text


def test_its_runs_cost():
    parts = spending((), None, make_ablation())
    assert [(part.name, part.n_runs, part.epochs, part.seconds) for part in parts] == [
        ("ablation", 5, 30, 50.0),
        ("all", 5, 30, 50.0),
    ]
