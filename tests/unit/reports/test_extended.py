"""Reports of a study that searches every method."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from nbtl_search import space
from nbtl_search.reports import figures, tables
from nbtl_search.reports.importance import importances
from nbtl_search.reports.prose import describe_recipe
from nbtl_search.spec import Dials, SearchSettings

ADDED = {"head_start": {"options": ["random", "logistic"]}, "layer_decay": {"low": 0.5, "high": 1}}
SEARCH = {"space": "extended", "rows": ADDED}
EXTENDED = space.build(SearchSettings.parse(SEARCH), n_blocks=22)


def content(trials) -> Any:
    return SimpleNamespace(trials=trials, facts=SimpleNamespace(n_blocks=22))


def drawn(make_trial, n):
    rng = random.Random(0)
    points = space.design(EXTENDED, n=n, seed=0)
    dials = [space.dials_of(EXTENDED, point) for point in points]
    return [
        make_trial(number, value=70 + 20 * (one.source_head == "keep") + rng.random(), **dict(one))
        for number, one in enumerate(dials)
    ]


def test_every_dial_has_its_panel_and_only_trials_where_it_has_an_effect(make_trial):
    trials = drawn(make_trial, 64)
    figure = figures.dials(trials)
    titles = [axis.title.text for axis in figure.select_xaxes() if axis.title.text]
    assert len(titles) == len(Dials.model_fields)
    by_title = dict(zip(titles, figure.data, strict=True))
    strengths = [trial.dials.delta_alpha for trial in trials if trial.dials.delta != "off"]
    assert len(by_title["DELTA strength"].x) == len(strengths) < len(trials)
    assert set(by_title["source classifier"].x) == {"replace", "keep"}
    assert figure.layout.height > 460
    figure.to_json()


def test_importances_see_conditional_dials_and_the_effective_rate(make_trial):
    found = importances(drawn(make_trial, 256), EXTENDED)
    assert next(iter(found.shares)) == "source_head"
    assert "effective_lr" in found.shares
    assert "lr_high" not in found.shares
    assert "delta_alpha" in found.shares
    assert found.reading.startswith("Source classifier mattered most")


def test_a_dial_that_few_trials_used_has_no_share(make_trial):
    rng = random.Random(0)
    trials = [
        make_trial(
            number,
            value=60 + 5 * number if number < 6 else 50 + rng.random(),
            beta=10 ** rng.uniform(-5, -1),
            lr_high=10 ** rng.uniform(-3, -2),
            **({"delta": "plain", "delta_alpha": 10 ** (number - 6)} if number < 6 else {}),
        )
        for number in range(18)
    ]
    found = importances(trials, EXTENDED)
    assert "delta_alpha" not in found.shares
    assert "delta" in found.shares
    assert sum(found.shares.values()) == pytest.approx(1)
    assert "Too few trials used: " in found.reading
    assert "DELTA strength" in found.reading.split("Too few trials used: ")[1]


def test_methods_are_described():
    dials = Dials(
        frozen_layers=8,
        source_head="keep",
        delta="attention",
        distill=4.0,
        dtnh="conflict",
        bss=0.001,
        stochnorm_p=0.5,
        momentum=0.5,
        decay_updates=120,
        decay_factor=0.5,
    )
    assert describe_recipe(dials, n_blocks=22) == (
        "1 new layer, rate 0.0025, first 8 blocks frozen, source classifier kept, DELTA 0.01, "
        "distillation 4 at T 3, DTNH, BSS 0.001, stochastic norm 0.5, momentum 0.5, "
        "rates x 0.5 every 120 updates"
    )
    assert describe_recipe(Dials(), n_blocks=22) == "1 new layer, rate 0.0025"
    some = describe_recipe(Dials(frozen_layers=1, delta="plain", dtnh="always"), n_blocks=22)
    assert some.endswith("first block frozen, plain DELTA 0.01, DTNH always")


def test_a_table_has_one_set_of_columns_and_the_new_dials_only_where_one_is_used(make_trial):
    plain = [make_trial(0, value=70.0), make_trial(1, value=71.0)]
    mixed = [*plain, make_trial(2, value=72.0, bss=0.001)]
    for trials, has_bss in ((plain, False), (mixed, True)):
        rows = tables.trials(content(trials)).rows
        assert len({tuple(row) for row in rows}) == 1
        assert ("bss" in rows[0]) is has_bss
        assert "delta" not in rows[0]
    only = tables.trials(content(mixed), plain).rows
    assert [row["bss"] for row in only] == [0.0, 0.0]
