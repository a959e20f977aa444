"""A classifier that starts from logistic regression on the features of the weights."""

from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from nbtl_search.data.loader import EvalBatches
from nbtl_search.errors import SpecError
from nbtl_search.measures.linear import fit_classifier
from nbtl_search.network.model import build
from nbtl_search.source import first_classifier
from nbtl_search.training.run import Run

LOGISTIC = {"head_start": "logistic", "reinit_layers": 1}


@pytest.fixture
def run_of(tiny_recipe, tiny_prepared, home):
    def make(**sections):
        sections["dials"] = LOGISTIC | sections.get("dials", {})
        return Run(tiny_recipe(**sections), prepared=tiny_prepared, home=home)

    return make


@torch.no_grad()
def features_by_timm(tiny_weights, prepared, split, image_format):
    model = timm.create_model("test_resnet", num_classes=0)
    state = safetensors.torch.load_file(tiny_weights)
    model.load_state_dict({n: v for n, v in state.items() if not n.startswith("fc.")})
    batches = EvalBatches(prepared, split, format=image_format, batch_size=5, device="cpu")
    return torch.cat([model.eval()(images) for images, _ in batches]).numpy()


@pytest.mark.parametrize("train_on", ["train", "train+val"])
def test_it_is_the_regression_on_the_images_that_are_trained_on(
    run_of, tiny_weights, tiny_prepared, train_on
):
    run = run_of(data={"train_on": train_on})
    splits = train_on.split("+")
    features = np.concatenate([
        features_by_timm(tiny_weights, tiny_prepared, split, run.network.image_format)
        for split in splits
    ])  # fmt: skip
    labels = np.concatenate([tiny_prepared.labels(split) for split in splits])
    expected = fit_classifier(features, labels, n_classes=3)
    classifier = run.network.model.get_classifier()
    assert np.allclose(classifier.weight.detach(), expected.weight, atol=1e-3)
    assert np.allclose(classifier.bias.detach(), expected.bias, atol=1e-3)
    # Everything else is as without it.
    usual = run_of(data={"train_on": train_on}, dials={"head_start": "random"}).network.model
    for name, value in usual.state_dict().items():
        assert torch.equal(value, run.network.model.state_dict()[name]) != name.startswith("fc.")


def test_the_next_run_reads_what_was_kept(run_of, monkeypatch):
    first = run_of()

    def no_more(*_args, **_options):
        raise AssertionError

    monkeypatch.setattr(first_classifier, "extract", no_more)
    second = run_of(train={"seed": 5})
    weights = [run.network.model.get_classifier().weight for run in (first, second)]
    assert torch.equal(*weights)


def test_who_waits_is_told_and_may_leave_and_what_was_extracted_stays(
    tiny_recipe, tiny_prepared, home
):
    class LeftError(Exception):
        pass

    seen = []

    def leave(n_done, n_all):
        seen.append((n_done, n_all))
        if n_done:
            raise LeftError

    recipe = tiny_recipe(dials=LOGISTIC)
    with pytest.raises(LeftError):
        Run(recipe, prepared=tiny_prepared, home=home, measuring=leave)
    assert seen[0] == (0, tiny_prepared.n_train)
    Run(recipe, prepared=tiny_prepared, home=home)


def test_new_layers_below_it_are_refused(run_of):
    with pytest.raises(SpecError, match="reinit_layers = 1"):
        run_of(dials={"reinit_layers": 2})


def test_random_weights_have_nothing_to_fit_to(run_of):
    with pytest.raises(SpecError, match="head_start = 'random' without pre-trained weights"):
        run_of(model={"weights": "random"})


def test_a_classifier_of_several_layers_is_refused(run_of, monkeypatch):
    monkeypatch.setattr(
        "timm.models.resnet.ResNet.get_classifier", lambda _self: torch.nn.Identity()
    )
    with pytest.raises(SpecError, match="classifier"):
        run_of()


@pytest.mark.parametrize(
    ("name", "expected"), [("test_resnet", True), ("resnetv2_18", True), ("caformer_s18", False)]
)
def test_whether_a_network_has_one_linear_layer_for_a_classifier(tiny_recipe, home, name, expected):
    recipe = tiny_recipe(
        model={"name": name, "weights": "random"}, dials={"reinit_layers": 1, "n_l2sp": 0}
    )
    network = build(recipe, n_classes=3, home=home)
    assert first_classifier.has_linear_head(network) is expected


def test_a_convolution_of_single_pixels_is_a_linear_classifier(tiny_recipe, tiny_prepared, home):
    torch.manual_seed(0)
    weights = home / "conv.safetensors"
    home.mkdir(exist_ok=True, parents=True)
    safetensors.torch.save_file(
        timm.create_model("resnetv2_18", num_classes=11).state_dict(), weights
    )
    recipe = tiny_recipe(
        model={"name": "resnetv2_18", "weights": str(weights)},
        dials=LOGISTIC | {"n_l2sp": 0, "n_low": 0},
    )
    run = Run(recipe, prepared=tiny_prepared, home=home)
    batches = EvalBatches(
        tiny_prepared, "train", format=run.network.image_format, batch_size=5, device="cpu"
    )
    images = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        model: Any = run.network.model.eval()
        features = model.forward_head(model.forward_features(images), pre_logits=True).flatten(1)
        logits = model(images)
    labels = tiny_prepared.labels("train")
    fitted = fit_classifier(features.numpy(), labels, n_classes=3)
    expected = features.numpy() @ fitted.weight.T + fitted.bias
    assert np.allclose(logits.numpy(), expected, atol=1e-3 * abs(expected).max())
