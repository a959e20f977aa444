"""Asynchronous successive halving that pauses and promotes, as pure functions."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from nbtl_search.ledger.promotion import NEW, Ladder, Room, Standing, choose, ladder_of
from nbtl_search.spec import DataSettings, SearchSettings, StudySpec, TrainSettings
from nbtl_search.spec.study import Pruning

PRUNING = Pruning(reduction=3.0, min_peers=3)
LADDER = Ladder(rungs=(3,), n_epochs=8, pruning=PRUNING)
TALL = Ladder(rungs=(2, 4), n_epochs=8, pruning=PRUNING)
FULL = Room(has_slot=True)
SPENT = Room(has_slot=False)
ACCURACIES = st.lists(st.floats(0, 100), min_size=1, max_size=60)


def paused(*values, first=0, granted=3):
    """Return trials that are paused at the only rung with these accuracies."""
    return [
        standing(trial_id=100 + number, number=number, state="paused", granted=granted,
                 best_at=(value,))
        for number, value in enumerate(values, start=first)
    ]  # fmt: skip


def standing(*, protected=False, **known):
    return Standing(protected=protected, **known)


def study(*, epochs, pruning):
    return StudySpec(
        name="cats",
        data=DataSettings(dataset="cats"),
        train=TrainSettings(epochs=epochs),
        search=SearchSettings(pruning=pruning),
    )


def complete(*values):
    return [
        standing(trial_id=200 + number, number=90 + number, state="complete", granted=8,
                 best_at=(value,))
        for number, value in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("epochs", "n_updates", "expected"),
    [
        (8, 12, (3,)),  # a quarter comes before the third epoch
        (8, 4, (5,)),  # 20 updates come after both
        (8, 2, ()),  # 20 updates come after the schedule
        (40, 100, (10,)),
        (4, 1000, (3,)),
        (3, 1000, ()),
    ],
)
def test_the_rung_lies_at_a_quarter_but_not_before_it_is_fair(epochs, n_updates, expected):
    ladder = ladder_of(study(epochs=epochs, pruning=Pruning()), n_updates=n_updates)
    assert ladder.rungs == expected
    assert ladder.n_epochs == epochs


def test_no_rungs_no_pauses():
    ladder = ladder_of(study(epochs=30, pruning=Pruning(rungs=())), n_updates=1000)
    assert ladder.stop_after(0) == 30


@pytest.mark.parametrize(("granted", "stop"), [(0, 2), (1, 2), (2, 4), (4, 8), (8, 8)])
def test_a_trial_pauses_at_the_next_rung_and_ends_with_its_schedule(granted, stop):
    assert TALL.stop_after(granted) == stop
    assert TALL.stop_after(granted, protected=True) == 8


def test_a_new_trial_begins_while_nobody_is_to_be_promoted():
    assert choose([], FULL, LADDER) == NEW
    assert choose(paused(90.0, 80.0), FULL, LADDER) == NEW  # fewer than min_peers


def test_the_best_of_three_is_promoted_before_a_fourth_begins():
    assert choose(paused(50.0, 70.0, 60.0), FULL, LADDER) == 101


def test_a_promoted_trial_takes_the_place_of_the_next():
    assert choose([*paused(50.0, 60.0), *complete(70.0)], FULL, LADDER) == NEW
    assert choose([*paused(50.0, 60.0), *complete(55.0)], FULL, LADDER) == 101


def test_one_that_was_paused_long_ago_is_promoted_when_weaker_ones_have_come():
    early = paused(60.0, 70.0, 65.0, 50.0, 50.0)
    promoted = [one if one.number != 1 else complete(70.0)[0] for one in early]
    assert choose(promoted, SPENT, LADDER) is None
    later = [*promoted, *paused(10.0, first=5)]
    assert choose(later, SPENT, LADDER) == 102


def test_of_equal_trials_the_earliest_is_promoted():
    assert choose(paused(50.0, 50.0, 50.0), FULL, LADDER) == 100


def test_the_highest_rung_promotes_first():
    standings = [
        standing(trial_id=n, number=n, state="paused", granted=4 if n < 3 else 2,
                 best_at=(90.0 - n, 91.0 - n) if n < 3 else (99.0, None))
        for n in range(9)
    ]  # fmt: skip
    assert choose(standings, FULL, TALL) == 0


@given(values=ACCURACIES, tenths=st.integers(11, 100))
@example(values=[float(n) for n in range(33)], tenths=11)
@example(values=[float(n) for n in range(11)], tenths=11)
def test_one_in_so_many_goes_on(values, tenths):
    ladder = Ladder(rungs=(3,), n_epochs=8, pruning=Pruning(min_peers=1, reduction=tenths / 10))
    standings, promoted = paused(*values), []
    while (chosen := choose(standings, SPENT, ladder)) is not None:
        promoted.append(chosen)
        standings = [
            one if one.trial_id != chosen
            else standing(trial_id=chosen, number=one.number, state="complete", granted=8,
                          best_at=one.best_at)
            for one in standings
        ]  # fmt: skip
    assert len(promoted) == max(1, 10 * len(values) // tenths)  # one at least has to be whole
    best = sorted(values, reverse=True)[: len(promoted)]
    assert [values[one - 100] for one in promoted] == best


@given(values=ACCURACIES, more=st.floats(0, 100))
def test_a_better_value_never_fares_worse(values, more):
    last = 100 + len(values) - 1
    if choose(paused(*values), SPENT, LADDER) == last:
        better = [*values[:-1], values[-1] + more]
        assert choose(paused(*better), SPENT, LADDER) == last


def test_with_too_few_epochs_for_a_new_trial_the_best_that_is_paused_gets_them():
    standings = paused(50.0, 60.0)
    assert choose(standings, Room(has_slot=True, epochs=3), LADDER) == NEW
    assert choose(standings, Room(has_slot=True, epochs=2), LADDER) == 101
    assert choose(standings, Room(has_slot=True, epochs=0), LADDER) is None
    assert choose(complete(60.0), Room(has_slot=True, epochs=2), LADDER) is None


def test_the_first_trial_begins_with_however_few_epochs():
    assert choose([], Room(has_slot=True, epochs=1), LADDER) == NEW


def test_with_all_trials_begun_epochs_that_are_left_promote_nobody_else():
    standings = [*paused(50.0, 60.0), *complete(70.0)]
    assert choose(standings, Room(has_slot=False, epochs=40), LADDER) is None


def test_a_protected_trial_takes_no_share_of_what_a_rung_promotes():
    default = standing(
        trial_id=1, number=0, state="complete", protected=True, granted=8, best_at=(99.0,)
    )
    assert choose([default, *paused(50.0, 60.0, 55.0, first=1)], SPENT, LADDER) == 102


def test_a_search_does_not_end_with_protected_trials_alone():
    default = standing(
        trial_id=1, number=0, state="complete", protected=True, granted=8, best_at=(99.0,)
    )
    assert choose([default, *paused(50.0, first=1)], SPENT, LADDER) == 101
    assert choose([default, *paused(50.0, first=1)], FULL, LADDER) == NEW
    assert choose([default, *paused(50.0, first=1), *complete(40.0)], SPENT, LADDER) is None


def test_a_protected_trial_that_was_cut_short_goes_on_first():
    default = standing(
        trial_id=1, number=0, state="paused", protected=True, granted=4, best_at=(10.0,)
    )
    assert choose([default, *paused(50.0, 60.0, 55.0, first=1)], FULL, LADDER) == 1


def test_who_runs_or_has_failed_counts_at_the_rung_and_is_not_chosen():
    standings = [
        standing(trial_id=n, number=n, state=state, granted=8, best_at=(90.0,))
        for n, state in enumerate(("running", "failed", "waiting"))
    ]
    assert choose([*standings, *paused(50.0, first=3)], SPENT, LADDER) is None
    assert choose([*standings[:2], *paused(95.0, first=3)], SPENT, LADDER) == 103


@given(n_epochs=st.integers(0, 30), wanted=st.integers(1, 30))
def test_no_more_is_granted_than_is_left(n_epochs, wanted):
    assert Room(has_slot=True, epochs=n_epochs).at_most(wanted) == min(n_epochs, wanted)
    assert FULL.at_most(wanted) == wanted


def test_what_was_cancelled_takes_no_place_of_those_that_can_go_on():
    every = paused(90.0, 80.0, 70.0, 60.0)
    cancelled = [replace(every[0], state="pruned", cause="cancelled"), *every[1:]]
    assert choose(cancelled, FULL, LADDER) == 101
