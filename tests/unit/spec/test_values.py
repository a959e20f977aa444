"""Specifications and recipes: round trips, refusals, fingerprints."""

import tomllib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nbtl_search.errors import SpecError
from nbtl_search.spec import (
    Dials,
    Epoch,
    Facts,
    Recipe,
    StudySpec,
    best_epoch,
    read_toml,
    with_settings,
    write_toml,
)
from nbtl_search.spec.verdict import Estimate, Interval

PLAIN = {"name": "cats", "data": {"dataset": "dtd"}}
FACTS = Facts(
    n_blocks=22, n_classes=47, n_train=1880, n_val=1880, n_test=1880,
    data_digest="a", weights_digest="b",
)  # fmt: skip

dials = st.builds(
    Dials,
    reinit_layers=st.integers(1, 23),
    lr_high=st.floats(1e-6, 1),
    n_low=st.integers(0, 22),
    lr_low_ratio=st.floats(1e-3, 1),
    lr_head_ratio=st.floats(1e-3, 100),
    n_l2sp=st.integers(0, 22),
    alpha=st.floats(0, 1),
    beta=st.floats(0, 1),
    momentum=st.floats(0, 0.99),
)


@given(dials=dials, seed=st.integers(0, 2**32), mixup=st.floats(0, 1))
def test_a_recipe_reads_back_equal_from_toml_and_json(dials, seed, mixup):
    recipe = StudySpec.parse(PLAIN).recipe(dials)
    recipe = recipe.replace(
        train=recipe.train.replace(seed=seed), augment=recipe.augment.replace(mixup=mixup)
    )
    assert Recipe.parse(tomllib.loads(write_toml(recipe))) == recipe
    assert Recipe.parse_json(recipe.model_dump_json()) == recipe


def test_a_study_reads_back_equal_from_toml_and_json():
    spec = StudySpec.parse(
        with_settings(PLAIN, ["search.rows.lr_high.low=1e-3", "budget.gpu_h=2"])
    ).replace(facts=FACTS)
    assert StudySpec.parse(tomllib.loads(write_toml(spec))) == spec
    assert StudySpec.parse_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("trian.epochs=3", "unknown key 'trian'; did you mean 'train'?"),
        ("train.epoch=3", "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("search.pruning.rung=[0.5]", "did you mean 'rungs'?"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1, got 0"),
        ("train.epochs=many", "train.epochs"),
        ("data.val_fraction=1.5", "data.val_fraction"),
        ("name='a b'", "name"),
        ("search.known=[{name='mine'}]", "must be named 'default'"),
        ("search.known=[{name='default'},{name='default'}]", "must differ"),
        ("train.warmup_lr=nan", "train.warmup_lr"),
        ("data.train_on=val", "data.train_on"),
        ("data.train_on='train+val'", "must be 'train' in a study, got 'train+val'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(assignment, says):
    with pytest.raises(SpecError) as refusal:
        StudySpec.parse(with_settings(PLAIN, [assignment]))
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("assignment", ["train.epochs", "=3", ""])
def test_an_assignment_without_a_key_or_value_is_refused(assignment):
    with pytest.raises(SpecError, match="KEY=VALUE"):
        with_settings(PLAIN, [assignment])


def test_an_assignment_through_a_value_is_refused():
    with pytest.raises(SpecError, match="'dataset' is a value"):
        with_settings(PLAIN, ["data.dataset.name=1"])


def test_assignments_leave_the_original_alone():
    with_settings(PLAIN, ["data.dataset=cars", "train.epochs=1"])
    assert PLAIN == {"name": "cats", "data": {"dataset": "dtd"}}


def test_values_are_frozen_and_a_changed_copy_is_validated():
    with pytest.raises(Exception, match="frozen"):
        setattr(Dials(), "lr_high", 1.0)  # noqa: B010  (mypy would refuse the assignment)
    with pytest.raises(SpecError, match="lr_high"):
        Dials().replace(lr_high=-1.0)


def test_toml_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"none\.toml"):
        read_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "assignment",
    [
        "name=dogs",
        "description=x",
        "budget.n_trials=99",
        "train.n_loaders=3",
        "search.known=[{name='default',reason='x'}]",
    ],
)
def test_what_cannot_change_a_result_does_not_change_the_fingerprint(assignment):
    spec = StudySpec.parse(PLAIN)
    changed = StudySpec.parse(with_settings(PLAIN, [assignment]))
    assert changed != spec
    assert changed.fingerprint() == spec.fingerprint()


@pytest.mark.parametrize(
    "assignment",
    [
        "train.epochs=3",
        "search.seed=1",
        "data.partition=2",
        "search.space=binary",
        "train.n_threads=2",
    ],
)
def test_what_can_change_a_result_changes_the_fingerprint(assignment):
    changed = StudySpec.parse(with_settings(PLAIN, [assignment]))
    assert changed.fingerprint() != StudySpec.parse(PLAIN).fingerprint()


def test_with_known_contents_the_places_they_were_read_from_do_not_count():
    here = StudySpec.parse(with_settings(PLAIN, ["data.root=/a", "model.weights=/a/w.pth"]))
    there = StudySpec.parse(with_settings(PLAIN, ["data.root=/b", "model.weights=/b/w.pth"]))
    assert here.fingerprint() != there.fingerprint()
    assert here.replace(facts=FACTS).fingerprint() == there.replace(facts=FACTS).fingerprint()
    other = FACTS.replace(data_digest="z")
    assert here.replace(facts=other).fingerprint() != there.replace(facts=FACTS).fingerprint()


def test_differences_are_named_by_path_and_value():
    spec = StudySpec.parse(PLAIN)
    other = StudySpec.parse(with_settings(PLAIN, ["train.epochs=3"]))
    assert spec.differences(other) == ["train.epochs: 30 != 3"]
    assert spec.differences(spec) == []


EPOCH = {
    "epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_top1": 50.0, "val_top5": 90.0,
    "lr": 0.1, "n_images": 8, "seconds": 1.0, "micro_batch": 8,
}  # fmt: skip


def test_two_epochs_agree_whatever_time_they_took():
    epoch = Epoch.parse(EPOCH)
    assert epoch.same_result(epoch.replace(seconds=9.0, micro_batch=4))
    assert not epoch.same_result(epoch.replace(train_loss=1.0000000000000002))


@pytest.mark.parametrize(
    ("top1s", "best"),
    [
        ([], None),
        ([None, None], None),
        ([50.0], 1),
        ([0.0, None], 1),
        ([50.0, 70.0, 70.0, 60.0], 2),
        ([None, 70.0, 80.0, None, 80.0], 3),
    ],
)
def test_the_best_epoch_is_the_first_of_the_highest(top1s, best):
    epochs = [Epoch.parse(EPOCH | {"epoch": i, "val_top1": v}) for i, v in enumerate(top1s, 1)]
    found = best_epoch(iter(epochs))
    assert (None if found is None else found.epoch) == best


class TestTrainingOnValidationToo:
    def test_a_recipe_may_and_reads_back_equal(self):
        recipe = StudySpec.parse(PLAIN).recipe(Dials())
        both = recipe.replace(data=recipe.data.replace(train_on="train+val"))
        assert both != recipe
        assert both.plain()["data"]["train_on"] == "train+val"
        assert Recipe.parse(tomllib.loads(write_toml(both))) == both
        assert Recipe.parse_json(both.model_dump_json()) == both

    def test_a_study_may_not_whichever_way_it_is_said(self):
        spec = StudySpec.parse(PLAIN)
        with pytest.raises(SpecError, match="images that it does not train on"):
            spec.replace(data=spec.data.replace(train_on="train+val"))

    def test_the_usual_choice_is_as_if_there_were_none(self):
        """Fingerprints and digests of before there was a choice stay as they are."""
        said = StudySpec.parse(with_settings(PLAIN, ["data.train_on=train"]))
        assert said == StudySpec.parse(PLAIN)
        rungs = ["search.pruning.rungs=[0.25, 0.5]", "search.pruning.min_updates=60"]  # of then
        old = StudySpec.parse(with_settings(PLAIN, [*rungs, "data.train_on=train"]))
        assert old.fingerprint() == "fe8169c4b15cd0d1"
        assert "train_on" not in said.model_dump_json()


def test_values_and_gains_in_words():
    value = Estimate(n=1, mean=81.2, low=78.9, high=83.5)
    assert value.describe() == "81.20 % [78.90, 83.50], 1 run"
    assert value.replace(n=3).describe().endswith(", 3 runs")
    gain = Interval(n=2, mean=1.5, low=-0.25, high=3.25)
    assert gain.describe() == "+1.50 points [-0.25, +3.25]: a tie"
    assert gain.replace(low=0.5).describe() == "+1.50 points [+0.50, +3.25]: better"
