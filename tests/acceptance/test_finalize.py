"""From a search to a figure: `finalize` as a program, with kills, refusals and one reading."""

import json
import random
import shutil
import time

import numpy as np
import pytest
from sqlalchemy import text

from nbtl_search import api
from nbtl_search.study import stages, store, verdicts
from tests.acceptance.conftest import FAST, wait_until
from tests.acceptance.test_kills import kill_one
from tests.rounds import LONG

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(900)]

N_TRIALS = 4
N_EPOCHS = 6
N_KILLS = 10 if LONG else 5
# All four trials; three of them have two new layers, so that their weights can be averaged.
PLAN = ("--candidates", 3, "--confirm-seeds", 2, "--test-seeds", 2)
WORKERS = ("--workers", 2, "--quiet", *FAST)


@pytest.fixture(scope="module")
def searched(shared_program, tiny):
    """Two studies that differ in name only, searched: every trial runs to its end."""
    program = shared_program
    for name in ("calm", "killed"):
        arguments = ["--name", name, "--set", "search.pruning.rungs=[]"]
        program.ok(*tiny, *arguments, "--epochs", N_EPOCHS, "--trials", N_TRIALS)
        program.ok("launch", name, *WORKERS, timeout_s=300)
    return program


@pytest.fixture(scope="module")
def calm(searched):
    """The verdict on the study that nobody disturbed."""
    told = searched.ok("finalize", "calm", *PLAN, *WORKERS, "--json", timeout_s=600)
    return json.loads(told), verdict_of(searched, "calm")


def verdict_of(program, name):
    verdict = api.verdict(name, home=program.home)
    assert verdict is not None
    return verdict


def is_planned(program, name):
    return api.verdict(name, home=program.home) is not None


def is_training(program, name):
    return any(run.state == "running" for run in verdict_of(program, name).runs)


def result_of(program, name):
    """Return all that final runs gave, and no times or places."""
    verdict = verdict_of(program, name)
    runs = [
        (run.stage, run.trials, run.seed, run.state, run.val_top1, run.test, run.weights.digest)
        if run.weights
        else (run.stage, run.trials, run.seed, run.state, run.val_top1, run.test)
        for run in verdict.runs
    ]
    return runs, verdict.contenders, verdict.winner, verdict.entries, verdict.gain


def test_both_stages_run_to_their_end(calm, searched):
    told, verdict = calm
    assert verdict.stage == told["stage"] == "done"
    stages = [run.stage for run in verdict.runs]
    averages = [each for each in verdict.contenders if each.averaged]
    assert len(averages) == 2
    assert stages.count("confirm") == (4 + 2) * 2
    assert stages.count("test") == 2 * len(verdict.entries)
    assert {run.state for run in verdict.runs} == {"complete"}
    assert verdict.contenders[0].name == "default"
    others = [each for each in verdict.contenders[1:] if not each.averaged]
    assert others == sorted(others, key=lambda each: -each.search_top1)
    assert len(verdict.readings) == 1
    status, _ = api.status("calm", home=searched.home)
    assert status.n_trials == status.complete == N_TRIALS, "final runs do not count as trials"


def test_no_seed_is_used_twice(calm):
    _, verdict = calm
    seeds = {
        stage: {r.seed for r in verdict.runs if r.stage == stage} for stage in ("confirm", "test")
    }
    assert not seeds["confirm"] & seeds["test"]
    assert 0 not in seeds["confirm"] | seeds["test"], "the seed of the search"


@pytest.mark.usefixtures("calm")
def test_the_first_stage_counts_the_last_epoch_and_the_second_trains_on_all(searched):
    opened = searched.open()
    study = store.open_study(opened, "calm")
    row = stages.latest_round(study)
    with opened.engine.connect() as connection:
        query = text(
            "SELECT t.study_id, t.value, e.val_top1, e.n_images FROM nbtl_trial t "
            "JOIN nbtl_epoch e USING (trial_id) WHERE e.epoch = 6"
        )
        rows = connection.execute(query).all()
    opened.close()
    n_train, n_val = study.facts.n_train, study.facts.n_val
    confirm = [found for found in rows if found.study_id == row.confirm_id]
    test = [found for found in rows if found.study_id == row.test_id]
    assert confirm
    assert all(found.value == found.val_top1 for found in confirm)
    assert all(found.n_images == n_train // 8 * 8 for found in confirm)
    assert test
    assert all(found.val_top1 is None for found in test)
    assert all(found.n_images == (n_train + n_val) // 8 * 8 for found in test)


def test_scores_and_ensemble_follow_from_the_predictions(calm, searched):
    _, verdict = calm
    opened = searched.open()
    study = store.open_study(opened, "calm")
    stage_id = stages.latest_round(study).test_id
    for entry in verdict.entries:
        mine = [run for run in verdict.runs if run.stage == "test" and run.trials == entry.trials]
        found = [verdicts.predictions(study, stage_id, run.number) for run in mine]
        for run, arrays in zip(mine, found, strict=True):
            labels = arrays["labels"]
            assert len(labels) == study.facts.n_test
            assert run.test.top1 == pytest.approx(100 * np.mean(arrays["single"] == labels))
            ten = arrays["probabilities"].argmax(1)
            assert run.test.ten_crop_top1 == pytest.approx(100 * np.mean(ten == labels))
        mean = np.mean([arrays["probabilities"].astype(np.float64) for arrays in found], axis=0)
        assert entry.ensemble_top1 == pytest.approx(100 * np.mean(mean.argmax(1) == labels))
        tops = [run.test.top1 for run in mine]
        assert entry.single.mean == pytest.approx(np.mean(tops))
        assert entry.single.std == pytest.approx(np.std(tops, ddof=1))
    opened.close()


def test_the_same_command_again_reads_nothing(calm, searched):
    _, verdict = calm
    told = json.loads(searched.ok("finalize", "calm", *WORKERS, "--json"))
    assert len(told["readings"]) == 1
    assert verdict_of(searched, "calm") == verdict


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("finalize", "calm", "--test-seeds", 3), "has read its test images with n_test_seeds = 2"),
        (("finalize", "calm@test-1"), "a search is finalised"),
        (("finalize", "clam"), "no study 'clam'"),
    ],
)
def test_what_cannot_be_meant_is_refused(calm, searched, arguments, words):
    _, verdict = calm
    done = searched.run(*arguments, *WORKERS)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr
    assert verdict_of(searched, "calm") == verdict


def test_an_unfinished_search_is_refused(searched, tiny):
    searched.ok(*tiny, "--name", "unfinished", "--epochs", 1)
    done = searched.run("finalize", "unfinished", *WORKERS)
    assert done.returncode == 2
    assert "nbtl-search stop unfinished" in done.stderr
    assert not is_planned(searched, "unfinished")


@pytest.mark.usefixtures("calm")
@pytest.mark.chaos
def test_kills_change_nothing_and_the_test_set_is_read_once(searched):
    chance = random.Random(7)
    finalize = searched.start("finalize", "killed", *PLAN, "--workers", 3, "--quiet", *FAST)
    wait_until(lambda: is_planned(searched, "killed"))
    n_kills = 0
    while finalize.poll() is None:
        if n_kills < N_KILLS and is_training(searched, "killed"):
            n_kills += kill_one(searched, chance)
            time.sleep(chance.uniform(0.5, 2.0))
        time.sleep(0.1)
    assert finalize.returncode == 0, finalize.stderr.read()
    assert n_kills >= N_KILLS
    assert result_of(searched, "killed") == result_of(searched, "calm")
    verdict = verdict_of(searched, "killed")
    assert sum(run.n_attempts for run in verdict.runs) > len(verdict.runs)
    assert [reading.round for reading in verdict.readings] == [1]


@pytest.mark.chaos
def test_a_second_reading_needs_a_reason_and_is_recorded(calm, searched):
    done = searched.start("finalize", "killed", "--again", "the first had a wrong label", *WORKERS)
    assert done.wait(600) == 0, done.stderr.read()
    first, second = verdict_of(searched, "killed").readings
    assert (first.reason, second.reason) == ("", "the first had a wrong label")
    seeds = {run.seed for run in verdict_of(searched, "killed").runs}
    assert not seeds & {run.seed for run in calm[1].runs}


def test_an_average_whose_weights_were_lost_is_no_candidate(searched, tiny):
    settings = ["--set", "search.pruning.rungs=[]"]
    searched.ok(*tiny, "--name", "lost", *settings, "--epochs", 1, "--trials", 4)
    searched.ok("launch", "lost", *WORKERS)
    finalize = searched.start("finalize", "lost", *PLAN, *WORKERS)
    kept = searched.home / "finals"
    # Of the four runs of the first seed the three that start alike.
    wait_until(lambda: len(list(kept.glob("lost@confirm-1-*/[0123]/model.safetensors"))) == 3)
    for folder in kept.glob("lost@confirm-1-*/[0123]"):
        shutil.rmtree(folder)
    assert finalize.wait(300) == 0, finalize.stderr.read()
    verdict = verdict_of(searched, "lost")
    failed = [run for run in verdict.runs if run.state == "failed"]
    assert {run.averaged for run in failed} <= {run.trials for run in verdict.runs}
    assert failed
    assert {run.state for run in verdict.runs if not run.averaged} == {"complete"}
    lost = {run.averaged for run in failed}
    assert not any(each.is_winner for each in verdict.contenders if each.averaged in lost)
    assert verdict.stage == "done"
    assert not list(kept.glob("lost@confirm-1-*")), "the test stage needs them no more"


def test_a_killed_command_goes_on(searched, tiny):
    searched.ok(
        *tiny, "--name", "again", "--set", "search.pruning.rungs=[]", "--epochs", 1, "--trials", 3
    )
    searched.ok("launch", "again", *WORKERS)
    finalize = searched.start("finalize", "again", *PLAN, *WORKERS)
    wait_until(lambda: is_planned(searched, "again"))
    finalize.terminate()
    finalize.wait(60)
    verdict = verdict_of(searched, "again")
    assert verdict.stage != "done"
    told = json.loads(searched.ok("finalize", "again", *WORKERS, "--json", timeout_s=300))
    assert told["stage"] == "done"
    assert len(told["readings"]) == 1


@pytest.mark.usefixtures("calm")
def test_deleting_a_study_deletes_its_final_runs(searched):
    searched.ok("delete", "again", "--yes")
    opened = searched.open()
    kept = [study.study_name for study in opened.optuna.get_all_studies()]
    with opened.engine.connect() as connection:
        names = connection.execute(text("SELECT name FROM nbtl_study")).scalars().all()
    opened.close()
    assert not [name for name in (*kept, *names) if name.startswith("again")]
    assert "calm@test-1" in kept
