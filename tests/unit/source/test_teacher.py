"""The teacher's logits: the source network's own, in the order that batches name."""

import pytest
import safetensors.torch
import timm
import torch

from nbtl_search.data.loader import EvalBatches, TrainBatches
from nbtl_search.errors import SpecError, WeightsError
from nbtl_search.network.model import build
from nbtl_search.source.teacher import check_precomputable, teacher_logits

PLAIN = {
    "crop_scale": (1.0, 1.0),
    "hflip": 0.0,
    "randaugment": "",
    "mixup": 0.0,
    "erasing": 0.0,
    "label_smoothing": 0.0,
}


@pytest.fixture
def recipe_of(tiny_recipe):
    """Return a maker of recipes that distil with a precomputed teacher."""

    def make(**sections):
        sections["augment"] = {"mixup": 0.0} | sections.get("augment", {})
        sections["methods"] = {"distill_teacher": "precomputed"}
        return tiny_recipe(**sections)

    return make


@pytest.fixture
def logits_of(pretrained, tiny_prepared, home):
    """Return a maker of a teacher's logits."""

    def make(recipe, **options):
        return teacher_logits(
            recipe, pretrained(recipe), prepared=tiny_prepared, home=home, **options
        )

    return make


@pytest.fixture
def source_network(tiny_weights):
    """Return timm's own model with the whole of the weights file in it, classifier too."""
    model = timm.create_model("test_resnet", num_classes=11)
    model.load_state_dict(safetensors.torch.load_file(tiny_weights))
    return model.eval()


@torch.no_grad()
def literal(source_network, prepared, split, image_format):
    batches = EvalBatches(prepared, split, format=image_format, batch_size=7, device="cpu")
    return torch.cat([source_network(images) for images, _ in batches])


@pytest.mark.parametrize("train_on", ["train", "train+val"])
def test_they_are_the_source_networks_own_split_after_split(
    logits_of, recipe_of, tiny_prepared, home, source_network, train_on
):
    recipe = recipe_of(data={"train_on": train_on})
    found = logits_of(recipe)
    image_format = build(recipe, n_classes=3, home=home).image_format
    expected = torch.cat(
        [
            literal(source_network, tiny_prepared, split, image_format)
            for split in train_on.split("+")
        ]
    )
    assert found.dtype == torch.float32
    assert found.std(dim=0).min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train_on", ["train", "train+val"])
def test_a_batch_finds_its_rows(
    logits_of, recipe_of, tiny_prepared, home, source_network, train_on
):
    recipe = recipe_of(data={"train_on": train_on}, augment=PLAIN)
    found = logits_of(recipe)
    batches = TrainBatches(
        tiny_prepared,
        augment=recipe.augment,
        format=build(recipe, n_classes=3, home=home).image_format,
        batch_size=8,
        seed=1,
        device="cpu",
        splits=train_on.split("+"),
    )
    seen = []
    for batch in batches.epoch(0):
        with torch.no_grad():
            expected = source_network(batch.images)
        torch.testing.assert_close(found[batch.indices], expected, rtol=1e-4, atol=1e-5)
        seen += batch.indices.tolist()
    assert len(seen) == len(set(seen)) == batches.n_updates * 8
    assert seen != sorted(seen)


def test_they_are_kept(logits_of, recipe_of, monkeypatch):
    first = logits_of(recipe_of())
    monkeypatch.setattr(EvalBatches, "__iter__", lambda _: pytest.fail("computed again"))
    assert torch.equal(first, logits_of(recipe_of()))


def test_the_dials_change_nothing_and_the_weights_do(logits_of, recipe_of, tiny_weights, tmp_path):
    first = logits_of(recipe_of())
    dialled = recipe_of(dials={"reinit_layers": 4, "distill": 1.0})
    assert torch.equal(first, logits_of(dialled))
    state = safetensors.torch.load_file(tiny_weights)
    path = tmp_path / "moved.safetensors"
    safetensors.torch.save_file({**state, "fc.weight": state["fc.weight"] * 2}, path)
    moved = recipe_of(model={"weights": str(path)})
    bias = state["fc.bias"]
    torch.testing.assert_close(logits_of(moved) - bias, 2 * (first - bias))


def test_mixed_images_are_refused(logits_of, recipe_of, home):
    recipe = recipe_of(augment={"mixup": 0.2})
    with pytest.raises(SpecError, match=r"augment\.mixup == 0, .* got 0\.2; set mixup to 0, or"):
        logits_of(recipe)
    assert not (home / "features").exists()


def test_random_weights_are_refused(recipe_of):
    with pytest.raises(SpecError, match=r"model\.weights != 'random', got 'random'"):
        check_precomputable(recipe_of(model={"weights": "random"}))


def test_weights_without_a_classifier_are_refused(logits_of, recipe_of, tiny_weights, tmp_path):
    state = safetensors.torch.load_file(tiny_weights)
    path = tmp_path / "bare.safetensors"
    bare = {name: value for name, value in state.items() if not name.startswith("fc.")}
    safetensors.torch.save_file(bare, path)
    with pytest.raises(WeightsError, match="weights with their linear classifier, got"):
        logits_of(recipe_of(model={"weights": str(path)}))


def test_progress_counts_images(logits_of, recipe_of, tiny_prepared):
    seen: list[tuple[int, int]] = []
    logits_of(recipe_of(), progress=lambda *now: seen.append(now))
    assert seen[-1] == (tiny_prepared.n_train, tiny_prepared.n_train)
