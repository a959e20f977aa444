"""`ablate` as a program: real workers, a kill in between, a table, JSON, a picture, a report."""

import json

import pytest

from nbtl_search import api
from nbtl_search.study import stages, store
from tests.acceptance.conftest import FAST, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(900)]

WORKERS = ("--workers", 2, "--quiet", *FAST)


@pytest.fixture(scope="module")
def searched(shared_program, tiny):
    """A study that is searched, and the number of a trial that has little of the default."""
    program = shared_program
    program.ok(*tiny, "--set", "search.pruning.rungs=[]", "--epochs", 1, "--trials", 5)
    program.ok("launch", "tiny", *WORKERS, timeout_s=300)
    _, trials = api.status("tiny", home=program.home)
    return program, next(trial.number for trial in trials if trial.name == "fitted")


def ablation_of(program):
    return api.ablation("tiny", home=program.home)


def test_an_ablation_that_is_killed_goes_on_to_its_end(searched, tmp_path):
    program, trial = searched
    arguments = ("ablate", "tiny", "--trial", trial, "--seeds", 3, *WORKERS)
    begun = program.start(*arguments)
    wait_until(
        lambda: (found := ablation_of(program)) and any(r.state == "complete" for r in found.runs)
    )
    begun.terminate()
    begun.wait(60)
    between = ablation_of(program)
    assert not between.is_done
    report, _ = api.status("tiny", home=program.home)
    assert report.ablation is not None
    assert report.ablation["n_runs"] == len(between.runs)
    refused = program.run("finalize", "tiny", *WORKERS)
    assert refused.returncode == 2
    assert "'tiny@ablation-1' is at work" in refused.stderr
    picture = tmp_path / "worth.svg"
    told = json.loads(program.ok(*arguments, "-o", picture, "--json", timeout_s=600))
    found = ablation_of(program)
    assert found.is_done
    assert json.loads(found.model_dump_json()) == told
    assert {run.state for run in found.runs} == {"complete"}
    values = {(run.variant, run.seed): run.val_top1 for run in found.runs}
    for worth in (*found.groups, found.total):
        seeds = [seed for variant, seed in values if variant == worth.variant]
        assert 2 <= len(seeds) <= 3
        mean = sum(values[0, seed] - values[worth.variant, seed] for seed in seeds) / len(seeds)
        assert worth.gain.mean == pytest.approx(mean)
    assert "What each group is worth" in picture.read_text()


def test_the_runs_end_with_the_last_epoch_and_open_no_test_image(searched):
    program, _ = searched
    opened = program.open()
    study = store.open_study(opened, "tiny")
    stage = store.open_study(opened, ablation_of(program).study)
    curves = api.status(stage.name, home=program.home)[1]
    assert all(trial.value == trial.last_top1 for trial in curves)
    assert {run.top1 for run in stages.runs_of(stage, stage.id)} == {None}
    assert stages.latest_round(study) is None
    opened.close()
    assert not list((program.home / "finals").glob("tiny*")), "weights are not kept"


def test_the_same_command_again_trains_nothing_and_says_the_same(searched, tmp_path):
    program, trial = searched
    before = ablation_of(program)
    text = program.ok("ablate", "tiny", "--trial", trial, *WORKERS)
    assert ablation_of(program) == before
    assert "all of them" in text
    assert "go on with" not in text
    page = tmp_path / "report.html"
    program.ok("report", "tiny", "-o", page, "--figures", tmp_path / "figures")
    assert 'id="ablation"' in page.read_text()
    assert {"ablation.svg", "ablation.png", "ablation.csv"} <= {
        file.name for file in (tmp_path / "figures").iterdir()
    }
    assert json.loads(program.ok("list", "--json"))[0]["name"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny@ablation-1",), "a search is ablated, got the final runs"),
        (("tinny",), "no study 'tinny'"),
        (("tiny", "--trial", 99), "has not trained trial 99 to its end"),
        (("tiny", "--trial", 0), "differs from the default, and trial 0 (default)"),
        (("tiny", "-o", "picture.bmp"), ".svg, .png, .csv"),
        (("tiny", "-o", "nowhere/picture.png"), "folder of 'nowhere/picture.png' must exist"),
    ],
)
def test_what_cannot_be_meant_is_refused(searched, arguments, words):
    program, _ = searched
    before = ablation_of(program)
    done = program.run("ablate", *arguments, *WORKERS)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr
    assert ablation_of(program) == before


def test_deleting_a_study_deletes_its_ablation(searched):
    program, _ = searched
    program.ok("delete", "tiny", "--yes")
    opened = program.open()
    assert opened.optuna.get_all_studies() == []
    opened.close()
