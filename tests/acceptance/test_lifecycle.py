"""What a trial can come to besides being killed."""

import json
import shutil
import tomllib

import optuna
import pytest

from nbtl_search import api
from nbtl_search.space import impossible
from nbtl_search.study import store
from tests.acceptance.conftest import FAST, check_invariants, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_a_loss_that_is_not_finite_ends_the_trial_as_pruned_and_infeasible(program, tiny):
    known = "search.known=[{name='default', dials={lr_high=1e30}}]"
    program.ok(*tiny, "--epochs", 3, "--trials", 1, "--set", known)
    program.ok("launch", "tiny", "--workers", 1, "--quiet", *FAST)
    storage = program.open()
    (told,) = [
        trial
        for trial in store.open_study(storage, "tiny").optuna.get_trials()
        if trial.state.is_finished()
    ]
    storage.close()
    assert told.state is optuna.trial.TrialState.PRUNED
    assert told.constraints == {"trainable": 1.0}
    assert told.user_attrs["nbtl:cause"] == "diverged"
    report = program.status("tiny")
    assert (report["state"], report["pruned"], report["failed"]) == ("finished", 1, 0)
    assert report["best"] is None


@pytest.mark.timeout(300)
def test_a_recipe_that_cannot_be_trained_ends_once_and_says_why(program, tiny):
    known = "search.known=[{name='default'}, {name='shrunk', dials={bss=1e-3}}]"
    program.ok(*tiny, "--epochs", 2, "--trials", 2, "--set", known, "--set", "methods.bss_k=9")
    program.ok("launch", "tiny", "--workers", 1, "--quiet", *FAST)
    report = program.status("tiny")
    assert (report["state"], report["complete"], report["pruned"]) == ("finished", 1, 1)
    _, (_, shrunk) = api.status("tiny", home=program.home)
    assert (shrunk.state, shrunk.cause, shrunk.n_attempts) == ("pruned", "infeasible", 1)
    assert shrunk.message.startswith("spectral shrinkage needs micro-batches of 9 images or more")
    storage = program.open()
    told = store.open_study(storage, "tiny").optuna.get_trials()[1]
    storage.close()
    assert told.state is optuna.trial.TrialState.PRUNED
    assert told.constraints == {"trainable": 1.0}
    printed = " ".join(program.ok("status", "tiny").split())
    assert f"infeasible, trial 1: {shrunk.message}" in printed


@pytest.mark.timeout(300)
def test_a_trial_that_is_cancelled_ends_with_the_next_heartbeat_of_its_worker(program, tiny):
    pruning = ("--set", "search.pruning.rungs=[]")
    program.ok(*tiny, *pruning, "--epochs", 2000, "--trials", 2)
    program.start("launch", "tiny", "--workers", 2, "--quiet", *FAST)

    def trial_1():
        _, trials = api.status("tiny", home=program.home)
        return next((trial for trial in trials if trial.number == 1 and trial.n_epochs > 1), None)

    running = wait_until(trial_1)
    answer = json.loads(program.ok("cancel", "tiny", 1, "--json"))
    assert answer == {"trial": 1, "state": "running", "value": None, "best_epoch": None}
    ended = wait_until(lambda: (found := trial_1()) and found.finished_at and found)
    assert (ended.state, ended.cause, ended.n_attempts) == ("pruned", "cancelled", 1)
    assert ended.n_epochs >= running.n_epochs
    assert ended.value is not None
    assert "cancelled" in program.ok("status", "tiny")
    gone = lambda: not list((program.home / "checkpoints").rglob("1/*.ckpt"))  # noqa: E731
    assert wait_until(gone)
    assert program.status("tiny")["running"] == 1, "the default goes on"
    for arguments, says in (
        (("cancel", "tiny", 1), "which has"),
        (("cancel", "tiny", 0), "the default recipe"),
        (("cancel", "tiny", 9), "trials 0 to 1"),
    ):
        refused = program.run(*arguments)
        (line,) = refused.stderr.strip().splitlines()
        assert (refused.returncode, says in line) == (2, True), line


@pytest.mark.timeout(300)
def test_a_study_that_is_over_goes_on_when_it_is_extended(program, tiny):
    program.ok(*tiny, "--epochs", 4, "--trials", 2)
    program.ok("launch", "tiny", "--workers", 1, "--quiet", *FAST)
    again = program.ok(*tiny, "--epochs", 4, "--trials", 3)
    assert "stays 2 trials" in again
    assert "nbtl-search extend tiny" in again
    assert program.status("tiny")["n_trials"] == 2
    assert "3 trials" in program.ok("extend", "tiny", "--trials", 3)
    program.ok("launch", "tiny", "--workers", 1, "--quiet", *FAST)
    check_invariants(program, "tiny", n_trials=3)
    refused = program.run("extend", "tiny", "--trials", 1)
    assert refused.returncode == 2
    assert refused.stderr.strip().endswith("at least what was spent, 3, got 1")
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.timeout(300)
def test_a_fork_goes_on_from_what_its_source_has_learnt(program, tiny):
    known = "search.known=[{name='default', dials={beta=1e-3}}]"
    program.ok(*tiny, "--epochs", 4, "--trials", 3, "--set", known)
    program.ok("launch", "tiny", "--workers", 1, "--quiet", *FAST)
    rate = json.loads(program.ok("best", "tiny", "--json"))["recipe"]["dials"]["lr_high"]
    narrow = ("--set", f"search.rows.lr_high.low={rate / 1.01}", "--set", "budget.n_trials=2")
    said = program.ok("fork", "tiny", "narrow", *narrow)
    assert "of 3 trials of 'tiny' taken over, at no cost to the budget" in said
    fork = json.loads(program.ok("fork", "tiny", "narrow", *narrow, "--json"))["fork"]
    assert 0 < fork["n_carried"] <= 3
    assert fork["n_carried"] + sum(fork["left_out"].values()) == 3
    before = program.status("narrow")
    assert (before["state"], before["complete"], before["n_trials"]) == ("idle", 0, 2)
    program.ok("launch", "narrow", "--workers", 1, "--quiet", *FAST)
    after = program.status("narrow")
    assert (after["state"], after["complete"] + after["pruned"]) == ("finished", 2)
    assert after["default"]["trial"] == fork["n_carried"]
    said = program.ok("fork", "tiny", "long", "--set", "train.epochs=6")
    assert "0 of 3 trials of 'tiny' taken over\n" in said
    assert "left out: train.epochs: 4 != 6 (all 3)" in said
    assert "tried early: tiny trial" in said
    refused = program.run("fork", "tiny", "long", "--set", "train.epochs=8")
    assert refused.returncode == 2
    assert "study 'long' exists with another specification" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.timeout(400)
def test_weak_trials_pause_for_good_and_the_default_never(program, tiny):
    program.ok(*tiny, "--epochs", 6, "--trials", 14)
    program.ok("launch", "tiny", "--workers", 2, "--quiet", *FAST, timeout_s=300)
    trials, curves, _ = check_invariants(program, "tiny", n_trials=14)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert trials[0].state == "complete"
    assert {len(curves[trial.number]) for trial in pruned} == {3}
    assert {trial.n_attempts for trial in trials} == {1}, "a promotion is no new attempt"
    printed = json.loads(program.ok("status", "tiny", "--json"))
    assert printed["complete"] + printed["pruned"] == printed["n_trials"] == 14
    best, default = printed["best"], printed["default"]
    assert {trial.number: trial.state for trial in trials}[best["trial"]] == "complete"
    assert best["low"] < best["value"] < best["high"]
    assert (default["trial"], trials[0].name) == (0, "default")
    assert best["value"] >= default["value"] or best["trial"] == 0
    assert not list((program.home / "checkpoints").rglob("*.ckpt")), "ended trials leave none"
    again = tomllib.loads(program.ok("best", "tiny"))
    assert again["dials"]["lr_high"] == printed["best"]["params"]["lr_high"]
    assert program.ok("launch", "tiny", "--workers", 1, "--quiet") == ""


@pytest.mark.timeout(300)
def test_train_takes_what_best_prints_and_resumes_from_its_checkpoints(program, tiny, tmp_path):
    program.ok(*tiny, "--epochs", 2, "--trials", 1)
    program.ok("launch", "tiny", "--workers", 1, "--quiet", *FAST)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(program.ok("best", "tiny"))
    arguments = ("train", recipe, "--json", "--checkpoints", tmp_path / "run")
    first = json.loads(program.ok(*arguments))
    best = json.loads(program.ok("best", "tiny", "--json"))
    assert first["best"]["val_top1"] == best["search_top1"] == best["value"]["mean"]
    assert json.loads(program.ok(*arguments)) == first
    assert program.run("delete", "tiny").returncode != 0, "it asks, and nobody answered"
    assert [study["name"] for study in json.loads(program.ok("list", "--json"))] == ["tiny"]
    program.ok("delete", "tiny", "--yes")
    assert json.loads(program.ok("list", "--json")) == []


@pytest.mark.timeout(300)
def test_workers_refuse_images_other_than_those_of_the_study(program, tiny, images, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(images, folder)
    arguments = [folder if argument == images else argument for argument in tiny]
    program.ok(*arguments, "--epochs", 1, "--trials", 2)
    shutil.copy(folder / "stripes-2" / "00.png", folder / "stripes-8" / "00.png")
    done = program.run("launch", "tiny", "--workers", 2, "--quiet", *FAST)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "not those the study was created with" in line
    report = program.status("tiny")
    assert (report["waiting"], report["failed"]) == (2, 0)
    assert not program.processes("worker")


@pytest.mark.timeout(600)
def test_every_method_is_searched_in_one_study(program, tiny, tmp_path):
    space = ("search.space='extended'", "methods.delta_batches=1")
    # Every trial is to be another recipe.
    settings = [part for one in (*space, "search.repeats=0") for part in ("--set", one)]
    program.ok(*tiny, *settings, "--epochs", 2, "--trials", 14, "--set", "search.seed=5")
    program.ok("launch", "tiny", "--workers", 2, "--quiet", *FAST, timeout_s=500)
    trials, _, recipes = check_invariants(program, "tiny", n_trials=14)
    for trial in trials:
        assert impossible(trial.dials, n_blocks=5) == []
        assert recipes[trial.number].methods.delta_batches == 1
    used = {name for trial in trials for name in trial.dials.plain()}
    assert {"momentum", "bss", "delta", "distill", "source_head", "stochnorm_p"} <= used
    odd = next(t for t in trials if t.dials.source_head == "keep" and t.state == "complete")
    again = tomllib.loads(program.ok("best", "tiny", "--trial", odd.number))
    assert again["dials"]["source_head"] == "keep"
    assert again["methods"] == {"delta_batches": 1}
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(program.ok("best", "tiny", "--trial", odd.number))
    trained = json.loads(program.ok("train", recipe, "--json"))
    assert trained["best"]["val_top1"] == odd.value


@pytest.mark.timeout(300)
def test_a_worker_leaves_while_attention_is_measured_and_another_goes_on(program, tiny):
    """Channels are many where a worker is told to stop: what was measured is kept."""
    known = "search.known=[{name='default', dials={delta='attention', delta_alpha=1e-3}}]"
    program.ok(*tiny, "--set", known, "--epochs", 1, "--trials", 1)
    worker = program.start("worker", "tiny", *FAST)
    parts = lambda: sorted((program.home / "attention").rglob("*.part"))  # noqa: E731
    wait_until(lambda: len(parts()) >= 2, every_s=0.01)
    worker.terminate()
    worker.wait(60)
    kept = parts()
    measured = {part: part.read_bytes() for part in kept}
    program.ok("launch", "tiny", "--workers", 1, "--quiet", *FAST)
    check_invariants(program, "tiny", n_trials=1)
    assert {part: part.read_bytes() for part in kept} == measured
