"""The command that makes the shipped weights, on few images, and the shipped weights themselves."""

import json

import pytest
import safetensors
import torch
from click.testing import CliRunner

from nbtl_search.cli.app import app
from nbtl_search.data import datasets
from nbtl_search.demo.pretraining import MODEL, pretrain, source_recipe
from nbtl_search.errors import WeightsError
from nbtl_search.network.model import build
from nbtl_search.network.weights import shipped_file
from nbtl_search.spec import ModelSettings, StudySpec
from nbtl_search.spec.study import shipped_study


@pytest.fixture
def tiny(monkeypatch):
    """A recipe of one epoch on three tiny images of each of the source families."""
    monkeypatch.setattr(datasets, "SOURCE_SIZES", (2, 1, 0))
    recipe = source_recipe(seed=3)
    return recipe.replace(
        data=recipe.data.replace(image_px=32), train=recipe.train.replace(epochs=1)
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def test_the_same_seed_writes_the_same_file(tiny, home, tmp_path):
    for name in ("first", "second"):
        (epoch,) = pretrain(tiny, tmp_path / f"{name}.safetensors", home=home)
        assert epoch.n_images == 32  # of 56, the last batch being incomplete
    first, second = (tmp_path / f"{name}.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_another_task_starts_from_what_was_written(tiny, home, tmp_path):
    file = tmp_path / "source.safetensors"
    list(pretrain(tiny, file, home=home))
    target = tiny.replace(model=ModelSettings(name=MODEL, weights=str(file)))
    network = build(target, n_classes=14, home=home)
    with safetensors.safe_open(file, "pt") as written:
        for name, value in network.anchors.items():
            assert torch.equal(value, written.get_tensor(name))
    assert len(network.anchors) > 10


def test_no_file_is_left_where_training_stopped(tiny, home, tmp_path):
    epochs = pretrain(tiny, tmp_path / "source.safetensors", home=home)
    next(epochs)
    epochs.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("weights.pth", r"written as \*\.safetensors"), ("none/w.safetensors", "make it first")],
)
def test_a_file_that_could_not_be_written_is_refused_at_once(tiny, home, tmp_path, name, message):
    with pytest.raises(WeightsError, match=message):
        next(pretrain(tiny, tmp_path / name, home=home))


@pytest.mark.usefixtures("tiny")
def test_the_command_says_what_it_costs(home, tmp_path):
    file = tmp_path / "source.safetensors"
    options = ["--epochs", "1", "--home", str(home), "-o", str(file)]
    done = CliRunner().invoke(app, ["pretrain", *options], catch_exceptions=False)
    assert "32 images" in done.stdout
    assert "processor time" in done.stdout
    assert file.is_file()


class TestShippedWeights:
    def test_they_are_small(self):
        file = shipped_file(MODEL)
        with safetensors.safe_open(file, "pt") as weights:
            n_parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
        assert file.stat().st_size <= 5e6
        assert n_parameters <= 2e6

    def test_they_are_those_of_the_recipe(self):
        """If this fails on purpose, make the weights anew: see nbtl_search/weights/README.md."""
        with safetensors.safe_open(shipped_file(MODEL), "pt") as weights:
            origin = json.loads(weights.metadata()["nbtl-search"])
        assert origin["recipe"] == source_recipe(seed=0).plain()
        assert origin["val_top1"] > 85

    def test_the_textures_study_starts_from_them(self):
        spec = StudySpec.parse(shipped_study("textures"))
        assert spec.model == ModelSettings(name=MODEL, weights="shipped")
        assert spec.data.image_px == source_recipe().data.image_px
