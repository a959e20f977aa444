import dataclasses
from typing import Any

import pytest

from nbtl_search.ledger.records import Totals, default_of
from nbtl_search.reports.cost import spending, time_left_s
from nbtl_search.spec import Budget


def totals(**changes):
    known: dict[str, Any] = {
        "state": "running",
        "n_trials": 10,
        "complete": 2,
        "pruned": 2,
        "running": 2,
        "paused": 0,
        "waiting": 4,
        "failed": 0,
        "epochs_spent": 24,
        "seconds_spent": 240.0,
    }
    return Totals(**known | changes)


def test_default_is_found_by_its_name(some_trials):
    assert default_of(some_trials) == some_trials[0]
    assert default_of(some_trials[1:]) is None


def test_time_left_counts_what_trials_have_cost(make_trial):
    trials = [
        make_trial(0, value=75.0, n_epochs=8),
        make_trial(1, value=75.0, n_epochs=8),
        make_trial(2, state="pruned", n_epochs=2),
        make_trial(3, state="pruned", n_epochs=2),
        make_trial(4, state="running", n_epochs=4),
        make_trial(5, state="running", n_epochs=6),
    ]
    left = time_left_s(totals(), trials, n_workers=2, n_epochs=8, budget=Budget(n_trials=10))
    # 1 epoch to the usual 5, 2 to the end of the other, 4 new trials of 5: 23 x 10 s by 2
    assert left == pytest.approx(115)


def test_time_left_before_any_trial_ended_takes_the_whole_schedule(make_trial):
    begun = totals(complete=0, pruned=0, running=1, waiting=1, epochs_spent=2, seconds_spent=20.0)
    trials = [make_trial(0, state="running", n_epochs=2)]
    left = time_left_s(begun, trials, n_workers=4, n_epochs=8, budget=Budget(n_trials=2))
    assert left == pytest.approx((6 + 8) * 10 / 2)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"epochs": 26}, (3 + 2) * 10 / 2),
        ({"epochs": 20}, 3 * 10 / 2),
        ({"gpu_h": 0.05}, 3 * 10 / 2),
    ],
)
def test_a_smaller_budget_ends_earlier(make_trial, budget, expected):
    ended = [make_trial(number, value=75.0, n_epochs=5) for number in range(4)]
    begun = [make_trial(4, state="running", n_epochs=4), make_trial(5, state="running", n_epochs=3)]
    left = time_left_s(
        totals(), [*ended, *begun], n_workers=2, n_epochs=8, budget=Budget(n_trials=10, **budget)
    )
    assert left == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "n_workers", "expected"),
    [
        ({"state": "finished"}, 0, 0.0),
        ({"state": "paused"}, 2, None),
        ({"state": "idle"}, 0, None),
        ({"epochs_spent": 0, "seconds_spent": 0.0}, 2, None),
    ],
)
def test_no_guess_where_there_is_nothing_to_guess_from(changes, n_workers, expected):
    budget = Budget(n_trials=10)
    left = time_left_s(totals(**changes), [], n_workers=n_workers, n_epochs=8, budget=budget)
    assert left == expected


def test_the_bill_tells_repeats_and_cancelled_trials_from_others(make_trial):
    trials = [
        make_trial(0, value=75.0, n_epochs=8),
        dataclasses.replace(make_trial(1, value=75.0, n_epochs=8), repeat_of=0),
        make_trial(2, state="pruned", n_epochs=3),
        dataclasses.replace(make_trial(3, state="pruned", n_epochs=2), cause="cancelled"),
        make_trial(4, state="paused", n_epochs=3),
    ]
    found = {part.name: part.epochs for part in spending(trials, None)}
    assert found == {
        "search: complete": 8,
        "search: repeats": 8,
        "search: stopped early": 3,
        "search: cancelled, or cannot be trained": 2,
        "search: not ended": 3,
        "all": 24,
    }
