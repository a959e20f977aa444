import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from nbtl_search.data import datasets
from nbtl_search.data.official import (
    read_aircraft,
    read_annotations,
    read_caltech256,
    read_cars,
    read_classes,
    read_dtd,
    read_list,
    split_train,
)
from nbtl_search.data.splits import SPLITS, Sizes
from nbtl_search.errors import DataError
from nbtl_search.spec import DataSettings


def keys(manifest, split: str) -> list[str]:
    return [item.key for item in manifest.items(split)]


# --------------------------------------------------------------------------------------- dtd
@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    names = [f"{c}/{c}_{i:04d}.jpg" for c in ("zigzagged", "banded") for i in range(6)]
    (tmp_path / "labels").mkdir()
    for partition in (1, 2):
        turned = names if partition == 1 else names[1:6] + names[:1] + names[7:] + names[6:7]
        for start, split in enumerate(SPLITS):
            listed = [n for i, n in enumerate(turned) if i % 6 // 2 == start]
            (tmp_path / "labels" / f"{split}{partition}.txt").write_text("\n".join(listed) + "\n")
    return tmp_path


TINY_DTD = Sizes(n_classes=2, train=4, val=4, test=4, per_class=dict.fromkeys(SPLITS, 2))


def test_dtd_partitions(dtd):
    first, second = (read_dtd(dtd, partition=p, expected=TINY_DTD) for p in (1, 2))
    assert first.classes == ("banded", "zigzagged")
    assert keys(first, "train")[:2] == ["banded/banded_0000.jpg", "banded/banded_0001.jpg"]
    assert keys(first, "train") != keys(second, "train")
    assert first.train[0].path == dtd / "images" / "banded" / "banded_0000.jpg"


def test_dtd_of_another_size_names_the_difference(dtd):
    with pytest.raises(
        DataError, match=r"2 classes instead of 47; 4 images in train instead of 1880"
    ):
        read_dtd(dtd, partition=1)


def test_dtd_unbalanced_classes_are_named(dtd):
    path = dtd / "labels" / "val1.txt"
    path.write_text(path.read_text().replace("banded/banded_0002", "zigzagged/zigzagged_0009"))
    with pytest.raises(DataError, match="1 images of 'banded' in val instead of 2"):
        read_dtd(dtd, partition=1, expected=TINY_DTD)


def test_dtd_missing_partition(dtd):
    with pytest.raises(DataError, match=r"train7\.txt must be a readable list"):
        read_dtd(dtd, partition=7, expected=TINY_DTD)


# -------------------------------------------------------------------------------- caltech256
def test_caltech256_by_file_number(tmp_path):
    for number, name in ((1, "ak47"), (56, "dog"), (257, "clutter")):
        folder = tmp_path / f"{number:03d}.{name}"
        folder.mkdir()
        for i in (1, 30, 31, 50, 51, 60):
            (folder / f"{number:03d}_{i:04d}.jpg").touch()
    (tmp_path / "056.dog" / "greg").mkdir()
    (tmp_path / "056.dog" / "greg" / "056_0001.jpg").touch()
    (tmp_path / "001.ak47" / "RENAME2").touch()
    (tmp_path / "notes").mkdir()
    expected = Sizes(n_classes=2, train=4, val=4, test=4, per_class={"train": 2, "val": 2})
    manifest = read_caltech256(tmp_path, expected=expected)
    assert manifest.classes == ("001.ak47", "056.dog")
    assert keys(manifest, "val") == [
        *("001.ak47/001_0031.jpg", "001.ak47/001_0050.jpg"),
        *("056.dog/056_0031.jpg", "056.dog/056_0050.jpg"),
    ]
    with pytest.raises(DataError, match="4 images in test instead of 16980"):
        read_caltech256(tmp_path)


# -------------------------------------------------------------------------------------- cars
def annotations(path: Path, classes: list[int], *, labelled: bool = True) -> None:
    fields = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    rows: list[Any] = [(1, c, f"{i:05d}.jpg") for i, c in enumerate(classes, start=1)]
    if not labelled:
        fields, rows = [fields[0], fields[2]], [(a, c) for a, _, c in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"annotations": np.array(rows, dtype=fields)})


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    names = np.array(["Ram C/V 2012", "Audi S4"], dtype=object)
    annotations(tmp_path / "devkit" / "cars_train_annos.mat", [2, 1, 2, 1, 2, 1, 1])
    annotations(tmp_path / "cars_test_annos_withlabels.mat", [1, 2, 2])
    scipy.io.savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": names})
    return tmp_path


TINY_CARS = Sizes(n_classes=2, train=3, val=4, test=3, per_class={"val": 2})


def test_cars_validation_is_the_first_of_each_class_of_train(cars):
    manifest = read_cars(cars, expected=TINY_CARS, n_val_per_class=2)
    assert manifest.classes == ("Ram C/V 2012", "Audi S4")
    assert keys(manifest, "val") == [f"cars_train/{i:05d}.jpg" for i in (1, 2, 3, 4)]
    assert keys(manifest, "train") == [f"cars_train/{i:05d}.jpg" for i in (5, 6, 7)]
    assert [item.label for item in manifest.val] == [1, 0, 1, 0]
    assert manifest.test[0].path == cars / "cars_test" / "00001.jpg"


def test_cars_of_another_size(cars):
    with pytest.raises(DataError, match="2 classes instead of 196"):
        read_cars(cars, n_val_per_class=2)


def test_cars_test_list_without_labels(cars):
    annotations(cars / "cars_test_annos_withlabels.mat", [1, 2], labelled=False)
    with pytest.raises(DataError, match="must hold a class for every image"):
        read_cars(cars, expected=TINY_CARS)


@pytest.mark.parametrize("damage", [None, b"not a mat file"])
def test_cars_devkit_missing_or_damaged(cars, damage):
    path = cars / "devkit" / "cars_meta.mat"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(DataError, match="must be the class_names of the Stanford Cars devkit"):
        read_cars(cars, expected=TINY_CARS)


@pytest.mark.data
def test_cars_official_train_list(real_data):
    devkit = real_data / "cars_devkit" / "devkit"
    items = read_annotations(devkit / "cars_train_annos.mat", images=Path("cars_train"))
    train, val = split_train(items)
    assert (len(items), len(train), len(val)) == (8144, 5988, 2156)
    assert {sum(i.label == label for i in val) for label in range(196)} == {11}
    assert set(train) | set(val) == set(items)
    assert len(read_classes(devkit / "cars_meta.mat")) == 196
    assert read_classes(devkit / "cars_meta.mat")[items[0].label] == "Audi TTS Coupe 2012"
    with pytest.raises(DataError, match="withlabels"):
        read_annotations(devkit / "cars_test_annos.mat", images=Path("cars_test"))


# ---------------------------------------------------------------------------------- aircraft
def test_aircraft_names_with_spaces(tmp_path):
    (tmp_path / "variants.txt").write_text("Boeing 717\nF-16A/B\n")
    for start, split in enumerate(SPLITS):
        text = f"00{start}2 F-16A/B\n00{start}1 Boeing 717\n"
        (tmp_path / f"images_variant_{split}.txt").write_text(text)
    expected = Sizes(n_classes=2, train=2, val=2, test=2, per_class={})
    manifest = read_aircraft(tmp_path, expected=expected)
    assert manifest.classes == ("Boeing 717", "F-16A/B")
    assert [(i.key, i.label) for i in manifest.val] == [("0011.jpg", 0), ("0012.jpg", 1)]
    assert manifest.val[0].path == tmp_path / "images" / "0011.jpg"
    with pytest.raises(DataError, match="2 classes instead of 100"):
        read_aircraft(tmp_path)
    (tmp_path / "images_variant_val.txt").write_text("0001 Boeing 7\n")
    with pytest.raises(DataError, match="'Boeing 7'"):
        read_aircraft(tmp_path, expected=expected)


@pytest.mark.data
def test_aircraft_official_lists(real_data):
    folder = real_data / "fgvc_aircraft_lists" / "data"
    classes = tuple((folder / "variants.txt").read_text().splitlines())
    trainval = read_list(folder / "images_variant_trainval.txt", classes=classes)
    test = read_list(folder / "images_variant_test.txt", classes=classes)
    assert (len(classes), len(trainval), len(test)) == (100, 6667, 3333)
    assert not {i.key for i in trainval} & {i.key for i in test}
    assert {i.label for i in test} == set(range(100))


# ---------------------------------------------------------------------------------- registry
@pytest.mark.parametrize("name", ["dtd", "caltech256", "cars", "aircraft"])
def test_missing_dataset_says_what_to_do(tmp_path, name):
    with pytest.raises(DataError, match=f"^{name} must lie in {tmp_path}") as e:
        datasets.manifest(DataSettings(dataset=name, root=str(tmp_path)), home=tmp_path)
    assert "\n" not in str(e.value)
    assert "extract" in str(e.value)


@pytest.mark.parametrize("below", [".", "dtd", "dtd/dtd"])
def test_registered_dataset_is_found_in_known_layouts(tmp_path, below):
    (tmp_path / below / "labels").mkdir(parents=True)
    settings = DataSettings(dataset="dtd", root=str(tmp_path))
    found = datasets.locate(settings, home=tmp_path)
    assert found is not None
    assert os.path.samefile(found, tmp_path / below)  # noqa: PTH121


@pytest.mark.parametrize("name", ["textures", "textures-source"])
def test_textures_need_nothing(tmp_path, name):
    manifest = datasets.manifest(DataSettings(dataset=name, image_px=40), home=tmp_path)
    assert manifest.textures is not None
    assert manifest.textures.size_px == 46
    assert list(tmp_path.iterdir()) == []
