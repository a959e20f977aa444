"""The rule by which processes that died start again; time is passed in."""

import pytest

from nbtl_search import restart_policy
from nbtl_search.restart_policy import Restarts


def pauses(restarts, *lives_s):
    return [restarts.after_death(lived_s=lived_s) for lived_s in lives_s]


def test_a_worker_that_keeps_dying_is_restarted_ever_later_and_then_no_more():
    restarts = Restarts(restart_policy.WORKER)
    assert pauses(restarts, *[1.0] * 7) == [1.0, 2.0, 4.0, 8.0, 16.0, None, None]


def test_a_worker_that_lived_more_than_a_minute_begins_the_count_anew():
    restarts = Restarts(restart_policy.WORKER)
    assert pauses(restarts, 1.0, 1.0, 60.0, 60.1, 1.0, 1.0) == [1.0, 2.0, 4.0, 0.5, 1.0, 2.0]


def test_a_worker_that_dies_each_hour_is_always_restarted():
    assert pauses(Restarts(restart_policy.WORKER), *[3600.0] * 100) == [0.5] * 100


@pytest.mark.parametrize("lived_s", [0.1, 600.0])
def test_a_trainer_that_never_answers_is_replaced_at_once_and_eight_times(lived_s):
    restarts = Restarts(restart_policy.TRAINER)
    assert pauses(restarts, *[lived_s] * 9) == [0.0] * 8 + [None]


def test_a_trainer_that_answered_is_forgiven():
    restarts = Restarts(restart_policy.TRAINER)
    pauses(restarts, *[1.0] * 8)
    restarts.forgive()
    assert pauses(restarts, 1.0) == [0.0]


def test_two_processes_are_counted_apart():
    one, other = Restarts(restart_policy.WORKER), Restarts(restart_policy.WORKER)
    pauses(one, *[1.0] * 6)
    assert pauses(other, 1.0) == [1.0]
