"""Training from random weights: nothing of the file gets in; resumable, and kept."""

from functools import partial

import pytest

from nbtl_search.data.prepared import prepare
from nbtl_search.diagnosis import random_weights
from nbtl_search.diagnosis.random_weights import scratch_recipe
from nbtl_search.errors import DivergedError
from nbtl_search.spec import Epoch
from nbtl_search.training.run import Run, train


@pytest.fixture
def random_accuracy(tiny_prepared):
    """Return the training of a recipe on the tiny images."""
    return partial(random_weights.random_accuracy, prepared=tiny_prepared)


def left(home):
    return sorted(path.name for path in (home / "diagnoses").rglob("*") if path.is_file())


def test_the_value_is_the_last_epoch_of_the_stated_training(random_accuracy, tiny_recipe, home):
    measured = random_accuracy(tiny_recipe(), home=home, epochs=3, lr=0.05)
    recipe = scratch_recipe(tiny_recipe(), epochs=3, lr=0.05)
    run = Run(recipe, prepared=prepare(recipe.data, home=home), home=home)
    epochs = [event for event in train(run) if isinstance(event, Epoch)]
    tops = [epoch.val_top1 or 0.0 for epoch in epochs]
    assert len(tops) == 3
    assert measured.value == tops[-1]
    assert measured.settings["protocol"] == "last epoch"
    assert measured.settings["updates"] == 3 * run.n_updates
    expected = {"budget": "reduced", "epochs": 3, "lr": 0.05, "seed": 3, "n_train": 24, "n_val": 9}
    assert {key: measured.settings[key] for key in expected} == expected
    assert measured.null == pytest.approx(100 / 3)
    assert measured.reason == ""


def test_nothing_of_the_weights_or_the_dials_gets_in(tiny_recipe):
    recipe = scratch_recipe(tiny_recipe(), epochs=4)
    assert recipe.model.weights == "random"
    assert (recipe.dials.n_l2sp, recipe.dials.alpha, recipe.dials.n_low) == (0, 0.0, 0)
    assert recipe.dials.lr_high == random_weights.SCRATCH_LR
    assert recipe.train.epochs == 4
    assert recipe.data == tiny_recipe().data
    assert recipe.augment == tiny_recipe().augment


def test_the_file_of_the_weights_is_not_even_read(random_accuracy, tiny_recipe, home):
    measured = random_accuracy(tiny_recipe(model={"weights": "/nowhere"}), home=home, epochs=1)
    assert measured.value is not None


def test_an_interrupted_training_goes_on_to_the_same_value(
    random_accuracy, tiny_recipe, home, tmp_path
):
    class KilledError(Exception):
        pass

    def kill(done, total):
        if done > total / 2:
            raise KilledError

    with pytest.raises(KilledError):
        random_accuracy(tiny_recipe(), home=home, epochs=4, progress=kill)
    assert any(name.endswith(".ckpt") for name in left(home))
    seen: list[int] = []
    resumed = random_accuracy(
        tiny_recipe(), home=home, epochs=4, progress=lambda done, _: seen.append(done)
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "data").symlink_to(home / "data")
    whole = random_accuracy(tiny_recipe(), home=other, epochs=4)
    assert min(seen) > 1
    assert resumed == whole
    assert left(home) == ["random.json"]


def test_a_second_time_costs_nothing(random_accuracy, tiny_recipe, home, monkeypatch):
    first = random_accuracy(tiny_recipe(), home=home, epochs=1)
    monkeypatch.setattr(random_weights, "Run", lambda *_, **__: pytest.fail("trained again"))
    assert random_accuracy(tiny_recipe(), home=home, epochs=1) == first


def test_the_dials_do_not_make_it_another_training(random_accuracy, tiny_recipe, home, monkeypatch):
    first = random_accuracy(tiny_recipe(), home=home, epochs=1)
    monkeypatch.setattr(random_weights, "Run", lambda *_, **__: pytest.fail("trained again"))
    other = tiny_recipe(dials={"reinit_layers": 1, "lr_high": 0.2})
    assert random_accuracy(other, home=home, epochs=1) == first


@pytest.mark.parametrize(
    "change",
    [{"epochs": 2}, {"lr": 0.01}, {"seed": 4}, {"batch_size": 4}],
    ids=["epochs", "lr", "seed", "batch"],
)
def test_what_matters_makes_it_another_training(random_accuracy, tiny_recipe, home, change):
    first = random_accuracy(tiny_recipe(), home=home, epochs=1)
    train_keys = {key: value for key, value in change.items() if key not in {"epochs", "lr"}}
    own = {"epochs": 1} | {key: change[key] for key in change.keys() & {"epochs", "lr"}}
    other = random_accuracy(tiny_recipe(train=train_keys), home=home, **own)
    assert other.settings != first.settings
    assert len(left(home)) == 2


def test_a_damaged_result_is_made_again(random_accuracy, tiny_recipe, home):
    first = random_accuracy(tiny_recipe(), home=home, epochs=1)
    (kept,) = (home / "diagnoses").rglob("random.json")
    kept.write_text(kept.read_text("utf-8")[:20], "utf-8")
    assert random_accuracy(tiny_recipe(), home=home, epochs=1) == first


def test_a_divergence_is_a_reason_and_no_number(random_accuracy, tiny_recipe, home, monkeypatch):
    def diverge(_run):
        message = "loss must be finite, got nan; lower the rate"
        raise DivergedError(message)

    monkeypatch.setattr(random_weights, "train", diverge)
    measured = random_accuracy(tiny_recipe(), home=home, epochs=1, lr=3.0)
    assert measured.value is None
    assert "must stay finite" in measured.reason
    assert "lr 3" in measured.reason
    assert "\n" not in measured.reason
    assert measured.null == pytest.approx(100 / 3)


def test_progress_counts_updates_to_the_end(random_accuracy, tiny_recipe, home):
    seen: list[tuple[int, int]] = []
    random_accuracy(tiny_recipe(), home=home, epochs=2, progress=lambda *now: seen.append(now))
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
