"""The whole diagnosis: every measure in its order, with or without a source, and quick refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from nbtl_search.diagnosis import diagnosis
from nbtl_search.diagnosis import diagnosis as engine
from nbtl_search.errors import DataError, SpecError, WeightsError
from nbtl_search.measures.emd import prototypes_of
from nbtl_search.source.prototypes import SourceImages
from nbtl_search.spec import TITLES, Diagnosis


def diagnose(recipe, **options):
    """Diagnose, without training from random weights unless that is asked for."""
    place = options.pop("source", None)
    about = {
        name: options.pop(key)
        for key, name in {"min_source_images": "min_images", "save_source": "save"}.items()
        if key in options
    }
    source = None if place is None else SourceImages(place=place, **about)
    return engine.diagnose(recipe, **{"random_epochs": 0, "source": source, **options})


HEADLESS = ("leep", "nce", "emd_classifier_rows")
EMD = ("emd", "emd_similarity", "emd_scale_free")


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory):
    """Four classes of source images, of 3 to 6 pictures."""
    folder, noise = tmp_path_factory.mktemp("source"), np.random.default_rng(1)
    for label in range(4):
        (folder / f"class {label}").mkdir()
        for i in range(3 + label):
            pixels = noise.integers(0, 64, (40, 40, 3)) + 48 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class {label}" / f"{i}.png")
    return folder


def npz(path, **changes):
    arrays = {"prototypes": np.ones((3, 96)), "counts": np.array([300, 300, 300])} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def no_work(monkeypatch):
    """Fail if anything that takes time begins."""
    monkeypatch.setattr(engine, "extract", lambda *_, **__: pytest.fail("began to extract"))


def test_every_measure_is_there_once_in_order(tiny_recipe, tiny_prepared, home):
    stages: list[str] = []
    found = diagnose(
        tiny_recipe(),
        home=home,
        random_epochs=1,
        seed=3,
        n_threads=1,
        on_stage=lambda stage, _done, _total: stages.append(stage),
    )
    assert [measure.name for measure in found.measures] == list(TITLES)
    assert all((measure.value is None) == bool(measure.reason) for measure in found.measures)
    for name in ("fixed_accuracy", "random_accuracy", "logme", *HEADLESS):
        assert found.value(name) is not None, name
    assert (found.n_images, found.n_val, found.n_features, found.n_classes) == (24, 9, 96, 3)
    assert found.data_digest == tiny_prepared.digest
    assert (found.layer, found.split, found.device, found.seed) == ("pooled", "train", "cpu", 3)
    assert {"torch", "timm", "numpy", "scikit-learn", "POT"} <= found.versions.keys()
    assert found.seconds > 0
    assert list(dict.fromkeys(stages)) == [
        "extracting features",
        "measuring",
        "training from random weights",
    ]
    assert Diagnosis.parse_json(found.model_dump_json()) == found


def test_again_it_says_the_same(tiny_recipe, home):
    first = diagnose(tiny_recipe(), home=home, random_epochs=1, n_threads=1)
    again = diagnose(tiny_recipe(), home=home, random_epochs=1, n_threads=1)
    assert first.measures == again.measures


def test_without_random_training_there_is_a_reason(tiny_recipe, home):
    found = diagnose(tiny_recipe(), home=home, random_epochs=0, n_threads=1)
    random = found.measured("random_accuracy")
    assert random is not None
    assert random.value is None
    assert random.reason.startswith("not asked for (")
    assert not (home / "diagnoses").exists()


def test_few_images_are_trained_on_for_more_epochs_than_a_trial_has(tiny_recipe, home):
    found = diagnose(tiny_recipe(), home=home, random_epochs=None, n_threads=1)
    random = found.measured("random_accuracy")
    assert random is not None
    assert (random.settings["epochs"], random.settings["updates"]) == (200, 600)


def test_without_a_source_emd_says_how_to_give_one(tiny_recipe, home):
    found = diagnose(tiny_recipe(), home=home, n_threads=1)
    for name in EMD:
        measured = found.measured(name)
        assert measured is not None
        assert measured.value is None
        assert measured.reason.startswith("needs source prototypes (--source)")


def test_the_source_probabilities_are_the_softmax_of_the_source_network(
    extracted, tiny_recipe, home
):
    features = extracted(tiny_recipe(), home=home)
    probabilities = diagnosis.Evidence(features=features).source_probabilities
    assert probabilities is not None
    assert probabilities.dtype == np.float64
    assert probabilities.shape == (24, 11)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    logits = torch.from_numpy(features.train).double() @ torch.from_numpy(
        np.asarray(features.head_weight)
    ).double().T + torch.from_numpy(np.asarray(features.head_bias))
    np.testing.assert_allclose(probabilities, logits.softmax(dim=1).numpy(), rtol=1e-9)


def test_a_block_has_no_source_classifier(tiny_recipe, home):
    found = diagnose(tiny_recipe(), home=home, layer="2", n_threads=1)
    assert found.layer == "2"
    for name in HEADLESS:
        measured = found.measured(name)
        assert measured is not None
        assert measured.value is None
        assert "layer '2'" in measured.reason
    assert found.value("fixed_accuracy") is not None


def test_small_source_classes_are_left_out(tiny_recipe, home, source_folder):
    few = diagnose(tiny_recipe(), home=home, source=source_folder, min_source_images=5, n_threads=1)
    every = diagnose(
        tiny_recipe(), home=home, source=source_folder, min_source_images=1, n_threads=1
    )
    none = diagnose(tiny_recipe(), home=home, source=source_folder, n_threads=1)
    assert few.value("emd") != every.value("emd")
    assert none.value("emd") is None


def test_a_dataset_is_at_no_distance_from_itself(extracted, tiny_recipe, home, tmp_path):
    features = extracted(tiny_recipe(), home=home)
    means, counts = prototypes_of(features.train.astype(np.float64), features.train_labels)
    file = npz(tmp_path / "self.npz", prototypes=means, counts=counts)
    found = diagnose(tiny_recipe(), home=home, source=file, min_source_images=0, n_threads=1)
    assert found.value("emd") == pytest.approx(0, abs=1e-9)
    assert found.value("emd_similarity") == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"counts": None}, "counts"),
        ({"counts": np.array([1, 2])}, "shapes"),
        ({"counts": np.array([1, 2, -1])}, "negative"),
        ({"counts": np.array(["a", "b", "c"])}, "counts of type"),
        ({"prototypes": np.full((3, 96), np.nan)}, "not finite"),
        ({"prototypes": np.ones(3)}, "shapes"),
        ({"prototypes": np.array([{}, {}, {}], dtype=object)}, "allow_pickle"),
    ],
    ids=["no counts", "length", "negative", "texts", "nan", "1-d", "pickle"],
)
def test_bad_prototypes_are_refused_before_any_work(
    tiny_recipe, home, tmp_path, monkeypatch, changes, says
):
    no_work(monkeypatch)
    with pytest.raises(DataError, match=says) as caught:
        diagnose(tiny_recipe(), home=home, source=npz(tmp_path / "bad.npz", **changes))
    assert "\n" not in str(caught.value)
    assert [path.name for path in home.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["missing.npz", "text.npz", "other.txt", "cut.npz"])
def test_files_that_are_no_npz_are_refused_before_any_work(
    tiny_recipe, home, tmp_path, monkeypatch, name
):
    no_work(monkeypatch)
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "other.txt").write_text("not an archive")
    whole = npz(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=name) as caught:
        diagnose(tiny_recipe(), home=home, source=tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["weights_digest", "layer"])
def test_prototypes_of_something_else_are_refused(tiny_recipe, home, tmp_path, monkeypatch, key):
    no_work(monkeypatch)
    file = npz(tmp_path / "other.npz", **{key: np.array("another")})
    with pytest.raises(WeightsError, match="got another in"):
        diagnose(tiny_recipe(), home=home, source=file)


def test_prototypes_of_another_width_are_refused(tiny_recipe, home, tmp_path):
    file = npz(tmp_path / "wide.npz", prototypes=np.ones((3, 97)))
    with pytest.raises(DataError, match="d == 96 features as the target's, got 97"):
        diagnose(tiny_recipe(), home=home, source=file, n_threads=1)


def test_random_weights_have_nothing_to_diagnose(tiny_recipe, home, monkeypatch):
    no_work(monkeypatch)
    with pytest.raises(SpecError, match="needs pre-trained weights"):
        diagnose(tiny_recipe(model={"weights": "random"}), home=home)
