"""What is said before a search: is all well here, and what will it cost?"""

import json
import subprocess
import sys

import pytest

from nbtl_search.spec import Dials
from nbtl_search.study import store
from tests.acceptance.conftest import NETWORK

pytestmark = [pytest.mark.postgres, pytest.mark.slow]
ALWAYS = {"python", "torch", "device", "precision", "memory", "disk", "shared memory", "home"}


def test_a_doctor_of_an_empty_home_makes_no_database(program):
    found = json.loads(program.ok("doctor", "--json"))
    assert {check["name"] for check in found} == ALWAYS | {"database"}
    assert not (program.home / "postgres").exists()


def test_a_doctor_of_a_study_looks_at_the_database_and_the_weights(program, tiny):
    program.ok(*tiny, "--epochs", 2, "--trials", 2)
    lines = program.ok("doctor", "tiny", "--workers", 4).splitlines()
    looked = {line[9:23].strip() for line in lines if line}
    assert looked == ALWAYS | {
        "weights", "database", "privileges", "connections", "round trip", "clock", "tables",
    }  # fmt: skip
    done = program.run("doctor", "--workers", 500)
    assert done.returncode == 1
    assert "PROBLEM  connections" in done.stdout
    assert "set max_connections" in done.stdout


def test_a_cost_estimate_is_of_the_real_recipe_and_leaves_nothing(program, tiny):
    program.ok(*tiny, "--epochs", 4, "--trials", 5)
    found = json.loads(program.ok("preflight", "tiny", "--workers", 2, "--json"))
    speed = found["speed"]
    assert (speed["device"], speed["n_updates"], speed["batch_size"]) == ("cpu", 6, 8)
    assert 0 < speed["update_low_s"] <= speed["update_s"] <= speed["update_high_s"]
    assert found["trial_s"] == pytest.approx(
        4 * (6 * speed["update_s"] + speed["validation_s"]), rel=1e-6
    )
    assert found["epochs"][1] == 20
    report = program.status("tiny")
    assert (report["epochs_spent"], report["waiting"]) == (0, 5)
    assert not (program.home / "checkpoints").exists()


def test_several_trainings_are_measured_together(program, tiny):
    program.ok(*tiny, "--epochs", 4, "--trials", 5)
    printed = program.ok("preflight", "tiny", "--packed", timeout_s=280)
    assert "packed   1 at once:" in printed
    assert "packed   2 at once:" in printed


def test_the_measuring_process_says_what_is_wrong_in_one_line(program, tiny, images):
    program.ok(*tiny, "--epochs", 2, "--trials", 2)
    opened = program.open()
    recipe = store.open_study(opened, "tiny").spec.recipe(Dials()).plain()
    opened.close()
    assert recipe["model"]["name"] == NETWORK
    recipe["data"]["dataset"] = str(images / "nowhere")
    done = subprocess.run(
        [sys.executable, "-m", "nbtl_search.training.speed"],
        input=json.dumps({"recipe": recipe, "home": str(program.home)}) + "\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "nowhere" in json.loads(done.stdout)["error"]
