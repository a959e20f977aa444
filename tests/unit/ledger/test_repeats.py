"""Which recipe runs once more, as a pure function."""

from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nbtl_search.ledger.promotion import Ladder, Room, Standing
from nbtl_search.ledger.repeats import worth_repeating
from nbtl_search.spec.study import Pruning

LADDER = Ladder(rungs=(), n_epochs=8, pruning=Pruning(), repeats=0.25, n_images=100)
FREE = Room(has_slot=True)


def whole(*values, first=0, repeat_of=None):
    """Return trials that ran to their end with these accuracies."""
    return [
        standing(number, value=value, repeat_of=repeat_of)
        for number, value in enumerate(values, start=first)
    ]


def standing(number, *, state="complete", value=None, repeat_of=None, granted=8, cause=None):
    return Standing(
        trial_id=100 + number, number=number, state=state, protected=repeat_of is not None,
        granted=granted, best_at=(), value=value, repeat_of=repeat_of, cause=cause,
    )  # fmt: skip


def chosen(standings, *, room=FREE, ladder=LADDER):
    found = worth_repeating(standings, room, ladder)
    return None if found is None else found.number


RIVALS = (75.0, 80.0, 79.0, 76.0)


def test_the_recipes_that_could_be_the_best_run_again():
    assert chosen(whole(*RIVALS)) == 1


def test_where_recipes_differ_much_a_new_one_is_the_better_use():
    assert chosen(whole(70.0, 80.0, 79.0, 40.0)) is None


def test_where_few_of_many_go_on_from_a_rung_a_new_recipe_costs_more():
    every = whole(79.0, 80.0, 79.5, 78.0)
    ladder = Ladder(rungs=(3,), n_epochs=8, pruning=Pruning(), repeats=0.25, n_images=400)
    assert chosen(every, ladder=ladder) == 1
    assert chosen(every, ladder=replace(ladder, rungs=())) is None


def test_not_before_a_few_recipes_are_whole():
    paused = [standing(number, state="paused", granted=3) for number in range(10, 30)]
    assert chosen([*whole(*RIVALS[:3]), *paused]) is None
    assert chosen([*whole(*RIVALS), *paused]) is not None


def test_not_where_seeds_hardly_differ():
    settled = [
        one
        for number in range(4)
        for one in whole(*[60.0 + 10 * number] * 6, first=10 * number + 5, repeat_of=number)
    ]
    every = [*whole(60.0, 70.0, 80.0, 90.0), *settled]
    ladder = Ladder(rungs=(), n_epochs=8, pruning=Pruning(), repeats=1.0, n_images=5000)
    assert chosen(every, ladder=ladder) is None


@pytest.mark.parametrize(
    ("room", "is_granted"),
    [
        (Room(has_slot=True, epochs=8), True),
        (Room(has_slot=True, epochs=7), False),
        (Room(has_slot=False), False),
    ],
)
def test_only_where_a_whole_run_has_room(room, is_granted):
    assert (chosen(whole(*RIVALS), room=room) is not None) == is_granted


def test_not_before_all_that_waits_from_the_start():
    room = replace(FREE, n_first=5)
    assert chosen(whole(*RIVALS), room=room) is None
    assert chosen(whole(*RIVALS, 74.0), room=room) == 1


def test_without_a_share_there_are_none():
    ladder = Ladder(rungs=(), n_epochs=8, pruning=Pruning(), n_images=100)
    assert chosen(whole(*RIVALS), ladder=ladder) is None


def test_a_repeat_that_runs_counts_before_it_has_a_value():
    every = whole(*RIVALS, 76.5, 77.0, 75.5)
    first = chosen(every)
    running = [standing(20 + n, state="running", repeat_of=first) for n in range(2)]
    ladder = Ladder(rungs=(), n_epochs=8, pruning=Pruning(), repeats=0.9, n_images=100)
    assert chosen([*every, *running], ladder=ladder) not in {None, first}


def test_a_recipe_that_could_not_be_trained_again_is_left_alone():
    every = whole(*RIVALS, 79.5, 76.0)
    best = chosen(every)
    broken = standing(20, state="pruned", granted=0, repeat_of=best, cause="diverged")
    assert chosen([*every, broken]) not in {None, best}
    cancelled = standing(20, state="pruned", granted=0, repeat_of=best, cause="cancelled")
    assert chosen([*every, cancelled]) == best, "its owner's wish says nothing of the recipe"


@given(values=st.lists(st.floats(50, 90), min_size=6, max_size=12), share=st.floats(0, 0.6))
def test_repeats_never_take_more_than_their_share(values, share):
    ladder = Ladder(rungs=(), n_epochs=8, pruning=Pruning(), repeats=share, n_images=50)
    standings: list[Standing] = []
    n_runs: Counter[int] = Counter()
    waiting = list(whole(*values))
    while waiting:
        number = chosen(standings, ladder=ladder)
        if number is None:
            standings.append(waiting.pop())
            continue
        n_runs[number] += 1
        value = next(one.value for one in standings if one.number == number)
        standings += whole(
            (value or 0.0) - 1 + n_runs[number] % 3, first=100 + len(standings), repeat_of=number
        )
        n_repeats = sum(one.repeat_of is not None for one in standings)
        assert n_repeats <= share * len(standings) + 1e-9
