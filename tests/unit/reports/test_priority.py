import threading
import time

import pytest

from nbtl_search.reports.dashboard.pages import Priority


@pytest.fixture
def priority():
    return Priority()


def test_nobody_is_waited_for_where_nobody_asks(priority):
    with priority.answering():
        pass
    started = time.monotonic()
    priority.way(longest_s=60)()
    assert time.monotonic() - started < 5


def test_drawing_waits_for_the_last_of_the_answers(priority):
    done = threading.Event()

    def draw():
        priority.way(longest_s=60)()
        done.set()

    with priority.answering():
        with priority.answering():
            thread = threading.Thread(target=draw)
            thread.start()
        assert not done.wait(0.05)
    assert done.wait(30)
    thread.join()


def test_all_waits_together_are_limited(priority):
    give_way = priority.way(longest_s=0.05)
    started = time.monotonic()
    with priority.answering():
        for _ in range(1000):
            give_way()
    assert 0.05 <= time.monotonic() - started < 5


def test_an_answer_that_fails_is_an_answer_that_ended(priority):
    with pytest.raises(RuntimeError), priority.answering():
        raise RuntimeError
    started = time.monotonic()
    priority.way(longest_s=60)()
    assert time.monotonic() - started < 5
