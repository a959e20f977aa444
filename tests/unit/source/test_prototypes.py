"""Prototypes of a folder of source images."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nbtl_search.data.images import decode, evaluation_transform
from nbtl_search.errors import DataError
from nbtl_search.network.model import build
from nbtl_search.source import prototypes
from nbtl_search.source.prototypes import prototypes_of_folder, read_prototypes
from nbtl_search.spec import Dials
from tests.unit.diagnosis.test_diagnosis import diagnose, no_work


@pytest.fixture
def folder(tmp_path):
    """Four classes of source images, of 3 to 6 pictures."""
    folder, noise = tmp_path / "source", np.random.default_rng(1)
    for label in range(4):
        (folder / f"class {label}").mkdir(parents=True)
        for i in range(3 + label):
            pixels = noise.integers(0, 64, (40, 50, 3)) + 48 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class {label}" / f"{i}.png")
    return folder


@pytest.fixture
def made(pretrained, tiny_recipe, home, folder):
    return prototypes_of_folder(folder, pretrained(tiny_recipe()), home=home)


def test_they_are_the_means_of_what_enters_the_classifier(tiny_recipe, home, folder, made):
    network = build(tiny_recipe().replace(dials=Dials()), n_classes=2, home=home)
    fmt = network.image_format
    transform = evaluation_transform(fmt)
    model: Any = network.model.eval()
    for label, row in enumerate(made.prototypes):
        files = sorted((folder / f"class {label}").iterdir())
        pixels = np.stack([transform(decode(file)) for file in files]).astype(np.float32)
        scaled = (pixels / 255 - np.array(fmt.mean)) / np.array(fmt.std)
        images = torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float()
        with torch.inference_mode():
            features = model.forward_head(model.forward_features(images), pre_logits=True)
        np.testing.assert_allclose(row, features.double().mean(0).numpy(), rtol=1e-4, atol=1e-5)
    assert made.counts.tolist() == [3, 4, 5, 6]
    assert (made.weights_digest, made.layer) == (network.weights_digest, "pooled")


def test_nothing_is_decoded_to_disk_and_a_second_time_costs_nothing(
    pretrained,
    tiny_recipe,
    home,
    folder,
    made,
    monkeypatch,
):
    kept = [path for path in home.rglob("*") if path.is_file() and "features" in path.parts]
    assert len(kept) == 4
    assert sum(path.stat().st_size for path in kept) < 4 * 1000
    monkeypatch.setattr(prototypes, "decode", lambda _file: pytest.fail("decoded again"))
    again = prototypes_of_folder(folder, pretrained(tiny_recipe()), home=home)
    assert np.array_equal(again.prototypes, made.prototypes)


def test_what_is_interrupted_goes_on_with_the_next_class(pretrained, tiny_recipe, home, folder):
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done > 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prototypes_of_folder(folder, pretrained(tiny_recipe()), home=home, progress=stop)
    decoded = []

    def noted(file):
        decoded.append(file)
        return decode(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prototypes, "decode", noted)
        found = prototypes_of_folder(folder, pretrained(tiny_recipe()), home=home)
    assert {file.parent.name for file in decoded} == {"class 2", "class 3"}
    whole = prototypes_of_folder(folder, pretrained(tiny_recipe()), home=home / "other")
    assert np.array_equal(found.prototypes, whole.prototypes)


def test_a_changed_class_and_a_damaged_part_are_made_anew(
    pretrained, tiny_recipe, home, folder, made
):
    (folder / "class 0" / "0.png").unlink()
    fewer = prototypes_of_folder(folder, pretrained(tiny_recipe()), home=home)
    assert fewer.counts.tolist() == [2, 4, 5, 6]
    assert not np.array_equal(fewer.prototypes[0], made.prototypes[0])
    for part in home.rglob("*.part"):
        part.write_bytes(part.read_bytes()[:-1])
    again = prototypes_of_folder(folder, pretrained(tiny_recipe()), home=home)
    assert np.array_equal(again.prototypes, fewer.prototypes)


def test_a_folder_and_its_saved_prototypes_give_the_same(tiny_recipe, home, folder, tmp_path):
    file = tmp_path / "source.npz"
    options = {"home": home, "min_source_images": 1, "random_epochs": 0, "n_threads": 1}
    by_folder = diagnose(tiny_recipe(), source=folder, save_source=file, **options)
    by_file = diagnose(tiny_recipe(), source=file, **options)
    assert read_prototypes(file).counts.tolist() == [3, 4, 5, 6]
    for name in ("emd", "emd_similarity", "emd_scale_free"):
        assert by_folder.value(name) is not None
        assert by_folder.value(name) == by_file.value(name)


def test_only_training_images_of_a_split_source_count(
    pretrained, tiny_recipe, home, folder, tmp_path, made
):
    split = tmp_path / "split"
    (split / "train").mkdir(parents=True)
    (split / "val").mkdir()
    for each in folder.iterdir():
        (split / "train" / each.name).symlink_to(each)
        (split / "val" / each.name).mkdir()
    found = prototypes_of_folder(split, pretrained(tiny_recipe()), home=home)
    assert np.array_equal(found.prototypes, made.prototypes)


def test_a_damaged_image_is_named(pretrained, tiny_recipe, home, folder):
    (folder / "class 1" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"class 1/1\.png") as caught:
        prototypes_of_folder(folder, pretrained(tiny_recipe()), home=home)
    assert "\n" not in str(caught.value)


def test_a_folder_without_classes_is_refused(pretrained, tiny_recipe, home, tmp_path):
    with pytest.raises(DataError, match="at least two, got 0"):
        prototypes_of_folder(tmp_path, pretrained(tiny_recipe()), home=home)


@pytest.mark.parametrize("name", ["a.txt", "nowhere/a.npz"])
def test_prototypes_that_cannot_be_saved_are_refused_before_any_work(
    tiny_recipe,
    home,
    folder,
    tmp_path,
    monkeypatch,
    name,
):
    no_work(monkeypatch)
    with pytest.raises(DataError, match=r"written to \*\.npz in a folder that exists"):
        diagnose(tiny_recipe(), home=home, source=folder, save_source=tmp_path / name)


def test_only_a_folder_has_prototypes_to_save(tiny_recipe, home, tmp_path, monkeypatch):
    no_work(monkeypatch)
    made = tmp_path / "made.npz"
    np.savez(made, prototypes=np.ones((2, 96)), counts=np.ones(2))
    with pytest.raises(DataError, match="give a folder by --source"):
        diagnose(tiny_recipe(), home=home, source=made, save_source=tmp_path / "a.npz")
