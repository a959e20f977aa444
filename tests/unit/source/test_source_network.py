"""A run makes its source network ready from what it has: one reading of weights, one cache."""

import pytest

from nbtl_search.data.prepared import prepare
from nbtl_search.diagnosis.diagnosis import diagnose
from nbtl_search.network import weights
from nbtl_search.training.final_run import ScoredImages, score_test
from nbtl_search.training.run import Run, train

METHODS = {
    "delta with attention": {
        "dials": {"delta": "attention", "delta_alpha": 0.01, "reinit_layers": 1},
        "methods": {"delta_taps": 2, "delta_batches": 1},
    },
    "precomputed teacher": {
        "dials": {"distill": 1.0},
        "methods": {"distill_teacher": "precomputed"},
        "augment": {"mixup": 0.0},
    },
}


@pytest.fixture
def readings(monkeypatch):
    """Return a list that grows with each weights file that is read."""
    seen, original = [], weights._read

    def noted(path):
        seen.append(path)
        return original(path)

    monkeypatch.setattr(weights, "_read", noted)
    return seen


def decoded_below(folder):
    return {path.parent.name for path in folder.rglob("pixels.*")}


@pytest.mark.parametrize("sections", METHODS.values(), ids=METHODS)
def test_a_trial_decodes_into_the_cache_and_reads_the_weights_once(
    tiny_recipe, tmp_path, readings, sections
):
    home, cache = tmp_path / "home", tmp_path / "cache"
    recipe = tiny_recipe(data={"test_fraction": 0.2}, **sections)
    prepared = prepare(recipe.data, home=home, cache=cache)
    run = Run(recipe, prepared=prepared, home=home)
    for _ in train(run):
        pass
    *_, last = score_test(run, home=home, cache=cache)
    assert isinstance(last, ScoredImages)
    assert any((home / "features").rglob("*.part"))
    assert len(readings) == 1
    assert {name.partition("-")[0] for name in decoded_below(cache)} == {"train", "val", "test"}
    assert decoded_below(home) == set()


def test_a_diagnosis_reads_the_weights_once(tiny_recipe, home, readings):
    diagnose(tiny_recipe(), home=home, random_epochs=1, n_threads=1)
    assert len(readings) == 1
