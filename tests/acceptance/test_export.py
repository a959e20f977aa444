"""From a study to a model in other hands: finalize, export, predict, and the page about it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbtl_search import api
from tests.acceptance.conftest import FAST, NETWORK

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture(scope="module")
def finalised(shared_program, tiny):
    """A study whose search and finalisation are over, and one that was never finalised."""
    shared_program.ok(*tiny, "--epochs", 2, "--trials", 2)
    shared_program.ok("launch", "tiny", "--workers", 1, "--quiet", *FAST)
    before = shared_program.run("export", "tiny", "-o", shared_program.home / "too-early")
    shared_program.ok(
        "finalize", "tiny", "--candidates", 1, "--confirm-seeds", 2, "--test-seeds", 2,
        "--workers", 1, "--quiet", *FAST, timeout_s=280,
    )  # fmt: skip
    return shared_program, before


@pytest.fixture(scope="module")
def model(finalised, tmp_path_factory):
    program, _ = finalised
    folder = tmp_path_factory.mktemp("exported") / "model"
    program.ok("export", "tiny", "-o", folder)
    return folder


@pytest.mark.timeout(400)
def test_a_study_that_is_not_finalised_is_told_the_command(finalised):
    program, before = finalised
    assert before.returncode == 2
    assert before.stderr.count("\n") == 1
    assert "nbtl-search finalize tiny" in before.stderr
    assert not (program.home / "too-early").exists()


@pytest.mark.timeout(400)
def test_the_model_predicts_what_the_final_run_predicted(finalised, model, images):
    program, _ = finalised
    verdict = api.verdict("tiny", home=program.home)
    assert verdict is not None
    runs = [r for r in verdict.runs if r.stage == "test" and r.candidate == verdict.winner]
    first = min(runs, key=lambda run: run.seed)
    assert first.weights is not None
    config = json.loads((model / "config.json").read_text("utf-8"))
    assert config["nbtl_search"]["weights_digest"] == first.weights.digest
    assert config["architecture"] == NETWORK
    stored = np.load(Path(first.weights.folder) / "predictions.npz")
    files, truths = _test_files(program, images)
    assert stored["labels"].tolist() == truths
    done = json.loads(program.ok("predict", model, *files, "--json", "--device", "cpu"))
    labels = config["label_names"]
    single = [labels.index(row["predictions"][0]["label"]) for row in done]
    assert single == stored["single"].tolist()
    ten = json.loads(
        program.ok("predict", model, *files, "--json", "--ten-crop", "--device", "cpu")
    )
    for row, expected in zip(ten, stored["probabilities"], strict=True):
        found = {p["label"]: p["probability"] for p in row["predictions"]}
        assert [found[label] for label in labels] == pytest.approx(expected.tolist(), abs=0.02)


def _test_files(program, images):
    """Return the test images of the study and their classes, in the order of the manifest."""
    from nbtl_search.data.datasets import manifest

    recipe, *_ = api.best("tiny", home=program.home)
    items = manifest(recipe.data, home=program.home).test
    paths = [item.path for item in items if item.path is not None and images in item.path.parents]
    assert len(paths) == len(items) > 0
    return paths, [item.label for item in items]


@pytest.mark.timeout(400)
def test_accuracies_where_folders_have_the_names_of_classes(finalised, model, images):
    program, _ = finalised
    printed = program.ok("predict", model, images, "--device", "cpu")
    assert "per class" in printed
    assert re.search(r"top-1 [\d.]+ % of 90 images \(95 % interval", printed)


@pytest.mark.timeout(400)
def test_the_code_of_the_page_and_of_the_card_runs(model, images, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    shutil.copy(next(images.rglob("*.png")), tmp_path / "photo.jpg")
    texts = (PAGE.read_text("utf-8"), (model / "README.md").read_text("utf-8"))
    for text in texts:
        (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        done = subprocess.run(
            [sys.executable, "-c", code.replace("THIS_FOLDER", "model")],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("stripes-")


@pytest.mark.timeout(400)
def test_an_ensemble_of_all_seeds(finalised, images, tmp_path):
    program, _ = finalised
    program.ok("export", "tiny", "-o", tmp_path / "all", "--seed-ensemble")
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [
        "README.md", "ensemble.json", "seed-1", "seed-2",
    ]  # fmt: skip
    file = next(images.rglob("*.png"))
    rows = json.loads(program.ok("predict", tmp_path / "all", file, "--json", "--device", "cpu"))
    assert sum(p["probability"] for p in rows[0]["predictions"]) == pytest.approx(1)


@pytest.mark.timeout(400)
def test_weights_that_are_gone_are_named(finalised, tmp_path):
    program, _ = finalised
    finals = program.home / "finals"
    finals.rename(program.home / "moved")
    try:
        done = program.run("export", "tiny", "-o", tmp_path / "out")
    finally:
        (program.home / "moved").rename(finals)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(finals) in done.stderr
    assert "host" in done.stderr
    assert list(tmp_path.iterdir()) == []
