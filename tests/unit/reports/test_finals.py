from io import StringIO

import pytest
from rich.console import Console

from nbtl_search.reports.terminal.finals import render
from tests.plausible_verdict import make_verdict

DEFAULT_TESTS = [77.0, 78.0, 76.5, 77.5]


@pytest.fixture
def trials(make_trial):
    return [
        make_trial(0, name="default", value=70.0),
        make_trial(7, value=75.0),
        make_trial(9, name="[red]cars[/]", value=74.0),
    ]


def drawn(verdict, *, width=80):
    file = StringIO()
    Console(file=file, width=width).print(render(verdict, name="dtd"))
    text = file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    return text


def test_a_gain_beyond_the_spread_is_better(trials):
    text = drawn(make_verdict(trials, winner=7, tests=[DEFAULT_TESTS, [81.0, 82.0, 80.5, 81.5]]))
    assert "test top-1, 4 seeds, trained on train and validation" in text
    assert "77.25 ± 0.65" in text
    assert "81.25 ± 0.65" in text
    assert "on the test images: better" in text
    assert "read once: 2026-03-01 12:00 UTC" in text
    first, _second = [line for line in text.splitlines() if line.startswith("trial 7 ")]
    assert " winner " in first


def test_a_tie_and_a_loss_are_called_so(trials):
    tie = make_verdict(trials, winner=7, tests=[DEFAULT_TESTS, [76.0, 79.5, 75.5, 79.0]])
    assert "a tie (the interval of the gain holds zero)" in " ".join(drawn(tie).split())
    loss = make_verdict(trials, winner=7, tests=[DEFAULT_TESTS, [71.0, 72.1, 70.5, 71.4]])
    assert "on the test images: worse" in drawn(loss)


def test_the_default_may_win(trials):
    text = drawn(make_verdict(trials, winner=0, tests=[DEFAULT_TESTS]))
    assert "The default recipe won" in text
    assert "\ngain" not in text


def test_before_the_end_it_says_how_to_go_on(trials):
    text = drawn(make_verdict(trials, winner=7, tests=[DEFAULT_TESTS] * 2, stage="confirm"))
    assert "go on with: nbtl-search finalize dtd" in text
    assert "test top-1" not in text


def test_every_reading_is_told_and_names_are_not_obeyed(trials):
    verdict = make_verdict(
        trials, winner=9, tests=[DEFAULT_TESTS, [81.0, 82.0, 80.5, 81.5]], reasons=("", "a label")
    )
    text = drawn(verdict)
    assert "read 2 times: 2026-03-01 12:00 UTC and 2026-03-02 12:00 UTC" in " ".join(text.split())
    assert "[red]cars[/]" in text


def test_an_average_is_named_by_its_trials_and_was_not_searched(trials):
    verdict = make_verdict(trials, winner=7, tests=[DEFAULT_TESTS, [81.0, 82.0, 80.5, 81.5]])
    default, member = verdict.entries
    average = member.replace(averaged=(7, 9), name="average of trial 7, trial 9")
    contenders = [one.replace(is_winner=False) for one in verdict.contenders]
    won = contenders[1].replace(
        averaged=(7, 9), name=average.name, search_top1=None, is_winner=True
    )
    text = drawn(verdict.replace(entries=(default, member, average), contenders=(*contenders, won)))
    confirmed, tested = text.split("test top-1")
    assert confirmed.count("winner") == 1
    row = next(line for line in confirmed.splitlines() if line.startswith("average of"))
    assert "winner" in row
    assert "None" not in text
    assert "average of" in tested
    assert "a tie" not in tested


def test_a_default_that_stands_for_an_average_has_not_won(trials):
    verdict = make_verdict(trials, winner=0, tests=[DEFAULT_TESTS]).replace(unmade=(0, 7))
    text = " ".join(drawn(verdict).split())
    assert "none could be made in the test stage" in text
    assert "The default recipe won" not in text
