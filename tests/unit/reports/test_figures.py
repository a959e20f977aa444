import json

import pytest

from nbtl_search.ledger.recommendation import recommend
from nbtl_search.reports import figures, traces

HOSTILE = "<script>alert(1)</script><b>x</b>"


def best_of(trials):
    return recommend(trials, n_images=400).best


def all_figures(trials, curves):
    return {
        "history": figures.history(trials),
        "learning_curves": figures.learning_curves(trials, curves, best=best_of(trials)),
        "non_binary": figures.non_binary(trials, n_blocks=22, best=best_of(trials)),
        "dials": figures.dials(trials),
    }


@pytest.fixture
def some_curves(make_curve):
    return {0: make_curve(30, 75), 1: make_curve(20, 82.504), 2: make_curve(40), 3: make_curve(60)}


def test_every_trace_has_data_and_every_figure_a_title_and_units(some_trials, some_curves):
    for name, figure in all_figures(some_trials, some_curves).items():
        assert figure.data, name
        assert all(trace.x for trace in figure.data), name
        assert figure.layout.title.text, name
        assert "%" in figure.layout.yaxis.title.text, name
        assert figure.layout.xaxis.title.text, name


def test_names_are_escaped(make_trial, make_curve):
    trials = [make_trial(0, value=75.0, name=HOSTILE), make_trial(1, value=70.0, name="default")]
    curves = {0: make_curve(75), 1: make_curve(70)}
    for name, figure in all_figures(trials, curves).items():
        text = figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
        assert "<script" not in text, name
        assert "<b>" not in text, name
    shown = json.loads(figures.history(trials).to_json())["data"][0]["text"]
    assert "&lt;script&gt;" in shown[0]


@pytest.mark.parametrize("state", ["running", "pruned"])
def test_no_figure_needs_a_complete_trial(make_trial, make_curve, state):
    for trials in ([], [make_trial(0, state=state)], [make_trial(0, state=state, value=30.0)]):
        for figure in all_figures(trials, {0: make_curve(30)}).values():
            figure.to_json()


def test_best_so_far_only_rises(make_trial):
    trials = [make_trial(n, value=value) for n, value in enumerate([50.0, 40.0, 60.0, 55.0])]
    line = next(t for t in figures.history(trials).data if t.name == "best so far")
    assert list(line.x) == [0, 1, 2, 3, 3]
    assert list(line.y) == [50.0, 50.0, 60.0, 60.0, 60.0]


def test_default_is_a_line_once_it_is_complete(some_trials, make_trial):
    named = [trace.name for trace in figures.history(some_trials).data]
    assert "default (75.00 %)" in named
    begun = [make_trial(0, state="running", value=9.0, name="default")]
    assert not any(t.name.startswith("default") for t in figures.history(begun).data)


def test_curves_are_rounded_and_do_not_run_into_each_other(some_trials, some_curves):
    figure = figures.learning_curves(some_trials, some_curves, best=best_of(some_trials))
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["best: trial 1 (paper-best)"].y) == [20, 82.5, None]
    assert list(by_name["default"].y) == [30, 75, None]
    assert by_name["pruned"].line.width < by_name["default"].line.width
    assert list(by_name["other trials"].x) == [1, None]


def test_non_binary_tells_layers_by_colour_and_l2sp_by_symbol(some_trials):
    figure = figures.non_binary(some_trials, n_blocks=22, best=best_of(some_trials))
    assert figure.layout.xaxis.type == "log"
    clouds = [trace for trace in figure.data if trace.showlegend is False]
    assert [trace.marker.color for trace in clouds] == list(traces.NEW_LAYERS[:2])
    assert list(clouds[0].marker.symbol) == ["circle", "circle", "square"]
    assert list(clouds[1].marker.symbol) == ["diamond"]
    assert clouds[0].marker.opacity[0] > clouds[0].marker.opacity[1]
    names = [trace.name for trace in figure.data]
    assert {"1 new layer", "2 new layers", "L2-SP on some", "best", "default"} <= set(names)


def test_l2sp_on_all_counts_only_blocks_that_are_still_pretrained(make_trial):
    trial = make_trial(0, value=50.0, reinit_layers=3, n_l2sp=20, alpha=0.1)
    assert figures.non_binary([trial], n_blocks=22, best=None).data[0].marker.symbol == ("square",)


def test_a_dial_without_effect_is_not_drawn(make_trial):
    trials = [
        make_trial(0, value=50.0, n_low=0, lr_low_ratio=1.0),
        make_trial(1, value=60.0, n_low=4, lr_low_ratio=0.1),
    ]
    figure = figures.dials(trials)
    by_title = {
        figure.layout[axis].title.text: figure.layout[axis].anchor for axis in ("xaxis", "xaxis2")
    }
    panels = {trace.yaxis or "y": list(trace.x) for trace in figure.data}
    assert panels[by_title["low rate / high"]] == [0.1]
    assert panels[by_title["blocks at low rate"]] == [0, 4]


def test_figures_stay_small(make_trial, make_curve):
    trials = [
        make_trial(n, value=50 + n / 7, lr_high=1e-3 + n / 1e5, beta=n / 1e4) for n in range(200)
    ]
    curves = {n: make_curve(*(50 + n / 7 + e / 3 for e in range(30))) for n in range(200)}
    sizes = {name: len(figure.to_json()) for name, figure in all_figures(trials, curves).items()}
    assert sum(sizes.values()) < 130_000, sizes
