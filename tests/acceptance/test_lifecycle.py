"""What a trial can come to besides being killed."""

import json
import shutil
import tomllib

import optuna
import pytest

from nbtl_search.study import store
from tests.acceptance.conftest import FAST, check_invariants

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


@pytest.mark.timeout(400)
def test_weak_trials_are_stopped_and_known_ones_never(program, tiny):
    program.ok(*tiny, "--epochs", 6, "--trials", 10)
    program.ok("launch", "tiny", "--workers", 2, "--quiet", *FAST, timeout_s=300)
    trials, curves, _ = check_invariants(program, "tiny", n_trials=10)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert not [trial for trial in pruned if trial.name]
    assert {len(curves[trial.number]) for trial in pruned} <= {3}
    printed = json.loads(program.ok("status", "tiny", "--json"))
    assert printed["complete"] + printed["pruned"] == printed["n_trials"] == 10
    assert printed["best"]["value"] == max(t.value for t in trials if t.state == "complete")
    assert printed["default"] == {"trial": 0, "value": trials[0].value}
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
    assert first["best"]["val_top1"] == best["value"]
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
