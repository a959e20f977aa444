"""Real photographs and real weights: Inception-v4 trains, and MobileNetV2 still classifies."""

import csv
import os
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from nbtl_search.data.loader import EvalBatches
from nbtl_search.data.prepared import prepare
from nbtl_search.network.device import Placement
from nbtl_search.network.model import build
from nbtl_search.network.weights import load_weights, read_weights
from nbtl_search.spec import ModelSettings, Recipe
from nbtl_search.training.checkpoint import load_latest, save
from nbtl_search.training.evaluation import evaluate
from nbtl_search.training.run import Run, train
from nbtl_search.transfer.penalties import L2SP

pytestmark = pytest.mark.data

MOBILENET = "mobilenetv2_100"


@pytest.fixture(scope="module")
def real_data():
    return Path(os.environ["NBTL_REAL_DATA"])


@pytest.fixture(scope="module")
def mobilenet_weights(real_data):
    return real_data / "weights" / "mobilenetv2_100_from_torchvision_int8.pth"


@pytest.fixture(scope="module")
def few_textures(real_data, tmp_path_factory):
    """Two photographs of each of two DTD classes for training, one for validation."""
    folder = tmp_path_factory.mktemp("dtd2")
    classes = sorted((real_data / "dtd10" / "images").iterdir())[:2]
    for source in classes:
        for split, photographs in (
            ("train", sorted(source.iterdir())[:2]),
            ("val", sorted(source.iterdir())[2:3]),
        ):
            target = folder / split / source.name
            target.mkdir(parents=True)
            for photograph in photographs:
                (target / photograph.name).symlink_to(photograph)
    return folder


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception_v4.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("inception_v4")
    safetensors.torch.save_file(model.state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_v4_at_299_px_steps_through_train_on_the_cpu(
    few_textures, inception_file, tmp_path
):
    recipe = Recipe.parse({
        "data": {"dataset": str(few_textures)},
        "model": {"weights": str(inception_file)},
        "train": {"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "n_threads": 1,
                  "device": "cpu", "precision": "fp32"},
        "dials": {"reinit_layers": 2, "lr_high": 0.002, "n_low": 14, "lr_low_ratio": 0.5,
                  "n_l2sp": 14, "alpha": 0.001, "beta": 0.001},
    })  # fmt: skip
    prepared = prepare(recipe.data, home=tmp_path)
    run = Run(recipe, prepared=prepared, home=tmp_path)
    file = safetensors.torch.load_file(inception_file)
    assert run.network.image_format.image_px == 299
    assert run.network.image_format.mean == (0.5, 0.5, 0.5)
    assert run.n_updates == 1
    started = {n: p.detach().clone() for n, p in run.network.model.named_parameters()}
    for name, value in started.items():
        old = not name.startswith(("features.21.", "last_linear."))
        assert torch.equal(value, file[name]) == (old or ".bn." in name), name

    steps = train(run)
    next(steps)
    for name, parameter in run.network.model.named_parameters():
        assert torch.isfinite(parameter).all(), name
    moved = [n for n, p in run.network.model.named_parameters() if not torch.equal(p, started[n])]
    assert len(moved) == 449, "every parameter has learnt"
    save(tmp_path / "checkpoints", run)

    resumed = Run(recipe, prepared=prepared, home=tmp_path)
    assert load_latest(tmp_path / "checkpoints", resumed)
    assert resumed.position == (0, 1), "before the validation"
    assert isinstance(resumed.penalty, L2SP)
    for pull in resumed.penalty.sp:
        assert pull.anchor is not None
        assert torch.equal(pull.anchor, file[pull.name])
    (epoch,) = [event for event in train(resumed) if event == resumed.best]
    assert epoch.n_images == 4
    list(steps)
    assert run.best is not None
    assert run.best.same_result(epoch)


@pytest.fixture
def imagenet_folder(real_data, tmp_path):
    """A folder whose class names are ImageNet's indexes; validation is what counts."""
    source = real_data / "imagenet_sample100"
    with (source / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for split in ("train", "val"):
            target = tmp_path / "imagenet" / split / f"{int(row['class_index']):04d}"
            target.mkdir(parents=True)
            (target / row["file"]).symlink_to(next(source.rglob(row["file"])))
    return tmp_path / "imagenet"


def test_the_real_weights_classify_imagenet_photographs(
    imagenet_folder, mobilenet_weights, tmp_path
):
    """Our loading, our evaluation pixels, our score: with the weights' own classifier put back."""
    recipe = Recipe.parse({
        "data": {"dataset": str(imagenet_folder), "image_px": 224},
        "model": {"name": MOBILENET, "weights": str(mobilenet_weights)},
    })  # fmt: skip
    network = build(recipe, n_classes=1000, home=tmp_path)
    weights = read_weights(ModelSettings(name=MOBILENET, weights=str(mobilenet_weights)),
                           home=tmp_path)  # fmt: skip
    cpu = Placement(device=torch.device("cpu"), bf16=False, n_threads=1)
    prepared = prepare(recipe.data, home=tmp_path)
    batches = EvalBatches(prepared, "val", format=network.image_format, batch_size=25, device="cpu")
    indexes = torch.tensor([int(name) for name in prepared.classes])
    fresh_head = evaluate(
        network.model, ((images, indexes[labels]) for images, labels in batches), placement=cpu
    )
    assert fresh_head.top1 < 10, "the classifier is always fresh"
    with torch.no_grad():
        for name, parameter in network.layers.head.parameters:
            parameter.copy_(weights.state[name])
    restored = evaluate(
        network.model, ((images, indexes[labels]) for images, labels in batches), placement=cpu
    )
    assert restored.n_images == 100
    assert restored.top1 > 70
    assert restored.top5 > 90


def test_real_weights_of_another_architecture_are_refused(mobilenet_weights, tmp_path):
    from nbtl_search.errors import WeightsError

    settings = ModelSettings(name="resnet18", weights=str(mobilenet_weights))
    with pytest.raises(WeightsError, match=r"120 tensors.* missing .* another architecture"):
        load_weights(
            timm.create_model("resnet18"), read_weights(settings, home=tmp_path),
            model_name="resnet18",
        )  # fmt: skip
