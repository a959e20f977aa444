"""Features: timm's own, kept in parts, the same after a kill, and with the source classifier."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from nbtl_search.data.loader import EvalBatches
from nbtl_search.data.prepared import prepare
from nbtl_search.errors import SpecError, WeightsError
from nbtl_search.files import arrays
from nbtl_search.network.device import Placement
from nbtl_search.network.model import build
from nbtl_search.source import features
from nbtl_search.spec import Dials, Recipe


@pytest.fixture
def source_network(tiny_weights):
    """Return timm's own model with the whole of the weights file in it, classifier too."""
    model = timm.create_model("test_resnet", num_classes=11)
    model.load_state_dict(safetensors.torch.load_file(tiny_weights))
    return model.eval().to(memory_format=torch.channels_last)


@pytest.fixture
def images_of(tiny_recipe, tiny_prepared, tiny_home):
    """Return the images of a split as the network gets them."""
    network = build(tiny_recipe(), n_classes=3, home=tiny_home, prepared=tiny_prepared)

    def make(split, batch_size=features.BATCH):
        batches = EvalBatches(
            tiny_prepared,
            split,
            format=network.image_format,
            batch_size=batch_size,
            device="cpu",
        )
        return [images.to(memory_format=torch.channels_last) for images, _ in batches]

    return make


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(features, "PART", 8)
    monkeypatch.setattr(features, "BATCH", 4)


def part_files(home):
    return sorted((home / "features").rglob("*.part"))


def test_features_are_timms_own_of_the_whole_pretrained_network(
    extracted, tiny_recipe, tiny_prepared, home, source_network, images_of
):
    found = extracted(tiny_recipe(), home=home)
    for split, array in (("train", found.train), ("val", found.val)):
        with torch.inference_mode():
            expected = torch.cat(
                [
                    source_network.forward_head(
                        source_network.forward_features(images), pre_logits=True
                    )
                    for images in images_of(split)
                ]
            ).numpy()
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected)
    assert found.train.std(axis=0).max() > 0
    np.testing.assert_array_equal(found.train_labels, tiny_prepared.labels("train"))
    np.testing.assert_array_equal(found.val_labels, tiny_prepared.labels("val"))
    assert (found.data_digest, found.n_classes) == (tiny_prepared.digest, 3)
    assert (found.layer, found.device) == ("pooled", "cpu")


def test_the_dials_of_the_recipe_change_nothing(extracted, tiny_recipe, home):
    plain = extracted(tiny_recipe(), home=home)
    dialled = tiny_recipe().replace(dials=Dials(reinit_layers=4, lr_high=1.0))
    again = extracted(dialled, home=home)
    np.testing.assert_array_equal(plain.train, again.train)
    assert len(list((home / "features").iterdir())) == 2  # one per split


def test_the_heads_logits_are_the_models_own(
    extracted, tiny_recipe, home, source_network, images_of
):
    found = extracted(tiny_recipe(), home=home)
    assert found.head_weight is not None
    assert found.head_bias is not None
    logits = found.train.astype(np.float64) @ found.head_weight.T + found.head_bias
    with torch.inference_mode():
        expected = torch.cat([source_network(images) for images in images_of("train")]).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert logits.shape[1] == 11


def test_weights_without_a_classifier_give_no_head(
    extracted, tiny_recipe, tiny_weights, tmp_path, home
):
    state = safetensors.torch.load_file(tiny_weights)
    bare = {name: value for name, value in state.items() if not name.startswith("fc.")}
    assert len(bare) == len(state) - 2
    path = tmp_path / "bare.safetensors"
    safetensors.torch.save_file(bare, path)
    found = extracted(tiny_recipe(model={"weights": str(path)}), home=home)
    assert found.head_weight is None
    assert found.head_bias is None


@pytest.mark.usefixtures("small_parts")
def test_a_killed_extraction_goes_on_bit_for_bit(extracted, tiny_recipe, home, tmp_path):
    class KilledError(Exception):
        pass

    def kill(done, _total):
        if done >= 20:  # in the middle of the third part
            raise KilledError

    with pytest.raises(KilledError):
        extracted(tiny_recipe(), home=home, progress=kill)
    before = {path: path.stat().st_mtime_ns for path in part_files(home)}
    assert len(before) == 2
    resumed = extracted(tiny_recipe(), home=home)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "data").symlink_to(home / "data")
    whole = extracted(tiny_recipe(), home=other)
    np.testing.assert_array_equal(resumed.train, whole.train)
    np.testing.assert_array_equal(resumed.val, whole.val)


@pytest.mark.usefixtures("small_parts")
def test_what_is_kept_is_not_computed_again(extracted, tiny_recipe, home, monkeypatch):
    first = extracted(tiny_recipe(), home=home)
    monkeypatch.setattr(EvalBatches, "__iter__", lambda _: pytest.fail("computed again"))
    again = extracted(tiny_recipe(), home=home)
    np.testing.assert_array_equal(first.train, again.train)


def damaged_by_a_flipped_bit(content):
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "damage",
    [damaged_by_a_flipped_bit, lambda content: content[:-40], lambda _: b"", lambda _: None],
    ids=["flipped", "cut", "empty", "gone"],
)
def test_a_damaged_part_is_made_again(extracted, tiny_recipe, home, damage):
    first = extracted(tiny_recipe(), home=home)
    path = part_files(home)[1]
    sound = path.read_bytes()
    broken = damage(sound)
    if broken is None:
        path.unlink()
    else:
        path.write_bytes(broken)
    again = extracted(tiny_recipe(), home=home)
    np.testing.assert_array_equal(first.train, again.train)
    np.testing.assert_array_equal(first.val, again.val)
    assert path.read_bytes() == sound


def test_a_sound_part_of_another_length_or_type_is_none(tmp_path):
    path = tmp_path / "0.part"
    arrays.write(path, np.ones((3, 2), np.float32))
    kept = arrays.read(path, n=3)
    assert kept is not None
    assert kept.shape == (3, 2)
    assert arrays.read(path, n=4) is None
    arrays.write(path, np.ones((3, 2), np.float64))
    assert arrays.read(path, n=3) is None
    arrays.write(path, np.ones(3, np.float32))
    assert arrays.read(path, n=3) is None


def test_other_weights_are_other_features(extracted, tiny_recipe, tiny_weights, tmp_path, home):
    state = safetensors.torch.load_file(tiny_weights)
    path = tmp_path / "moved.safetensors"
    name = "bn1.weight"
    safetensors.torch.save_file({**state, name: state[name] * 1.5}, path)
    first = extracted(tiny_recipe(), home=home)
    second = extracted(tiny_recipe(model={"weights": str(path)}), home=home)
    assert first.weights_digest != second.weights_digest
    assert not np.array_equal(first.train, second.train)


@pytest.mark.usefixtures("small_parts")
def test_progress_counts_the_images_of_both_splits(extracted, tiny_recipe, tiny_prepared, home):
    seen: list[tuple[int, int]] = []
    extracted(tiny_recipe(), home=home, progress=lambda *now: seen.append(now))
    n = tiny_prepared.n_train + tiny_prepared.n_val
    assert seen[-1] == (n, n)
    assert seen[1] == (4, n)  # each batch, not each part
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_block_gives_the_mean_of_its_output(
    extracted, tiny_recipe, home, source_network, images_of
):
    found = extracted(tiny_recipe(), home=home, layer="2")
    with torch.inference_mode():
        images = images_of("train")
        expected = []
        for batch in images:
            x = source_network.maxpool(source_network.act1(source_network.bn1(
                source_network.conv1(batch))))  # fmt: skip
            expected.append(source_network.layer2(source_network.layer1(x)).mean(dim=(2, 3)))
    np.testing.assert_allclose(found.train, torch.cat(expected).numpy(), rtol=1e-5, atol=1e-6)
    assert found.head_weight is None  # it takes other features


def test_the_last_block_pools_to_what_enters_the_classifier(extracted, tiny_recipe, home):
    pooled = extracted(tiny_recipe(), home=home)
    last = extracted(tiny_recipe(), home=home, layer="4")
    np.testing.assert_allclose(last.train, pooled.train, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", ["5", "-1", "layer1", "", "²"])
def test_layers_that_are_not_there_are_refused(extracted, tiny_recipe, home, layer):
    with pytest.raises(SpecError, match="--layer must be 'pooled' or a block from 0 to 4"):
        extracted(tiny_recipe(), home=home, layer=layer)
    assert not (home / "features").exists()


def test_random_weights_are_refused(pretrained, tiny_recipe):
    with pytest.raises(SpecError, match=r"model\.weights != 'random'"):
        pretrained(tiny_recipe(model={"weights": "random"}))


def test_weights_that_do_not_exist_are_refused(pretrained, tiny_recipe):
    with pytest.raises(WeightsError, match="no such file"):
        pretrained(tiny_recipe(model={"weights": "/nowhere.pth"}))


def test_threads_and_precision_are_as_before(extracted, tiny_recipe, home):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = torch.get_num_threads(), conv.fp32_precision
    extracted(tiny_recipe(), home=home, n_threads=2)
    assert (torch.get_num_threads(), conv.fp32_precision) == before
    with features.exact_float32():
        assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
    assert conv.fp32_precision == before[1]


@pytest.mark.gpu
def test_a_gpu_gives_the_features_of_the_cpu(extracted, tiny_recipe, home, tmp_path):
    cpu = extracted(tiny_recipe(), home=home)
    other = tmp_path / "gpu"
    other.mkdir()
    gpu = extracted(tiny_recipe(train={"device": "cuda"}), home=other)
    np.testing.assert_allclose(gpu.train, cpu.train, rtol=1e-3, atol=1e-4)


@pytest.mark.data
def test_real_features_and_logits_are_mobilenets_own(extracted, tmp_path):
    data = Path(os.environ["NBTL_REAL_DATA"])
    folder = tmp_path / "flowers"
    for name in ("daisy", "roses"):
        (folder / name).mkdir(parents=True)
        for photograph in sorted((data / "flowers" / name).iterdir())[:5]:
            (folder / name / photograph.name).symlink_to(photograph)
    weights = data / "weights" / "mobilenetv2_100_from_torchvision_int8.pth"
    recipe = Recipe.parse(
        {
            "data": {"dataset": str(folder), "image_px": 96},
            "model": {"name": "mobilenetv2_100", "weights": str(weights)},
            "train": {"device": "cpu"},
        }
    )
    found = extracted(recipe, home=tmp_path / "home")
    prepared = prepare(recipe.data, home=tmp_path / "home")
    network = build(recipe, n_classes=2, home=tmp_path / "home", prepared=prepared)
    batches = EvalBatches(
        prepared, "train", format=network.image_format, batch_size=32, device="cpu"
    )
    model: Any = timm.create_model("mobilenetv2_100", checkpoint_path=str(weights)).eval()
    placement = Placement(device=torch.device("cpu"), bf16=False, n_threads=1)
    with torch.inference_mode(), placement.numerics():
        images = torch.cat([images for images, _ in batches])
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        logits = model(images)
    np.testing.assert_allclose(found.train, expected.numpy(), rtol=1e-3, atol=1e-4)
    assert found.head_weight is not None
    ours = found.train @ found.head_weight.T + found.head_bias
    np.testing.assert_allclose(ours, logits.numpy(), rtol=1e-3, atol=1e-3)
