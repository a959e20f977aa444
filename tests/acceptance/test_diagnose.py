"""From `diagnose` to an advised study and its report; and a diagnosis that is killed."""

import json
import random
import re
import time

import pytest

from tests.acceptance.conftest import check_invariants
from tests.rounds import LONG

pytestmark = pytest.mark.slow

SMALL = ("--set", "train.batch_size=8", "--set", "data.image_px=48")


def options(images):
    return (str(images), "--model", "test_resnet", "--weights", "shipped", *SMALL)


def diagnose(program, images, *more):
    words = ("diagnose", *options(images), "--random-epochs", "6", "--json", *more)
    return json.loads(program.ok(*words, timeout_s=300))


def create(program, images, *more):
    name, *rest = options(images)
    return program.ok("create", "--dataset", name, *rest, "--epochs", "2", *more)


def values(diagnosis):
    return {
        measure["name"]: (measure["value"], measure["null"]) for measure in diagnosis["measures"]
    }


def test_an_advised_study_from_start_to_end(program, images):
    told = create(program, images, "--name", "before", "--trials", "2")
    assert "advice   none" in told
    found = diagnose(program, images)
    assert found["n_classes"] == 3
    assert values(found)["fixed_accuracy"][0] > 60
    regime = found["conclusion"]["regime"]
    assert regime in {"suited", "borderline", "unsuited"}

    told = create(
        program, images, "--name", "after", "--trials", "11", "--set", "search.n_startup=3"
    )
    assert f"the weights look {regime}" in told
    advised = re.findall(r"tried early: (table7-\S+)", told)
    assert len(advised) == 1
    program.ok("launch", "after", "--workers", "2", "--beat-s", "0.5", "--quiet", timeout_s=300)
    trials, _, _ = check_invariants(program, "after", n_trials=11)
    assert {"default", *advised} <= {trial.name for trial in trials}

    again = create(program, images, "--name", "later", "--trials", "12")
    assert re.search(r"of 12 trials \d try what earlier studies found", again)
    assert "advice   none" in create(program, images, "--name", "plain", "--no-advise")
    report = program.home / "report.html"
    program.ok("report", "after", "-o", str(report))
    assert 'id="fit"' in report.read_text("utf-8")


def test_insisting_on_advice_without_measures_is_refused(program, images):
    name, *rest = options(images)
    done = program.run("create", "--dataset", name, *rest, "--advise")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("Error: advice needs measures")
    assert len(done.stderr.strip().splitlines()) == 1
    assert json.loads(program.ok("list", "--json")) == []


@pytest.mark.chaos
def test_a_diagnosis_killed_again_and_again_ends_as_one_left_alone(program, shared_program, images):
    alone = diagnose(shared_program, images)
    seed = 4
    print("seed", seed)
    moments = random.Random(seed)
    words = ("diagnose", *options(images), "--random-epochs", "6", "--json")
    killed = 0
    for _ in range(5 if LONG else 3):
        process = program.start(*words)
        time.sleep(moments.uniform(4.0, 10.0))
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed >= 2
    assert values(diagnose(program, images)) == values(alone)
