"""The demo as a user runs it, with fewer trials: its table, and whether what it claims is so."""

import re

import pytest

from nbtl_search import api
from nbtl_search.demo import search as demo

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(640)]

N_TRIALS = 4  # the three known recipes, and one that is worse and stopped early


@pytest.fixture(scope="module")
def first(shared_program):
    done = shared_program.run_alone("demo", "--trials", N_TRIALS, timeout_s=600)
    assert done.returncode == 0, done.stderr
    return done


def _value(text, name):
    (found,) = re.findall(rf"^{name} +(\d+\.\d\d) %", text, re.MULTILINE)
    return float(found)


def test_fine_tuning_is_clearly_above_random_weights(first):
    random = _value(first.stdout, "random weights")
    default = _value(first.stdout, "default binary")
    assert default > random + 10
    assert _value(first.stdout, "best found") >= default
    assert random > 100 / 14


def test_it_says_what_the_numbers_are_worth(first):
    assert "One of 336 validation images is 0.30 points" in " ".join(first.stdout.split())
    assert "Best against default" in first.stdout or "No trial was better" in first.stdout


def test_the_winner_is_confirmed_on_the_test_images(first, shared_program):
    verdict = api.verdict(demo.STUDY, home=shared_program.home)
    assert verdict is not None
    assert (verdict.stage, len(verdict.readings)) == ("done", 1)
    for entry in verdict.entries:
        assert entry.single.n == demo.TEST_SEEDS
        assert f"{entry.single.mean:.2f} ± {entry.single.std:.2f}" in first.stdout
    assert "The test images were read once" in first.stdout


def test_it_says_what_to_do_next(first):
    for command in ("dashboard", "create --dataset ./my-folder", "demo --fresh", "db stop"):
        assert f"nbtl-search {command}" in first.stdout


def test_nothing_frightens(first):
    said = first.stdout + first.stderr
    for word in ("Traceback", "Error", "WARNING", "warning"):
        assert word not in said


def test_the_table_is_what_the_study_holds(first, shared_program):
    home = shared_program.home
    report, trials = api.status(demo.STUDY, home=home)
    assert report.state == "finished"
    assert len(trials) == N_TRIALS
    assert report.complete + report.pruned == N_TRIALS
    assert report.pruned >= 1
    assert report.best is not None
    assert _value(first.stdout, "best found") == pytest.approx(report.best["value"], abs=0.005)
    assert _value(first.stdout, "default binary") == pytest.approx(
        report.default["value"], abs=0.005
    )


def test_no_trial_is_stopped_before_it_had_its_chance(first, shared_program):  # noqa: ARG001
    _, trials = api.status(demo.STUDY, home=shared_program.home)
    recipe, *_ = api.best(demo.STUDY, home=shared_program.home)
    n_updates = 336 // recipe.train.batch_size
    assert all(trial.n_epochs >= 3 for trial in trials)
    assert all(trial.n_epochs * n_updates >= 60 for trial in trials)


def test_again_it_shows_what_is_there(first, shared_program):
    again = shared_program.run("demo", timeout_s=300)
    assert again.returncode == 0, again.stderr
    assert f"{N_TRIALS} of {N_TRIALS} trials have ended" in " ".join(again.stdout.split())
    for name in ("random weights", "default binary", "best found"):
        assert _value(again.stdout, name) == _value(first.stdout, name)
