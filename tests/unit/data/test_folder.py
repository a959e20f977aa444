from pathlib import Path

import pytest

from nbtl_search.data import datasets
from nbtl_search.data.folder import read_folder
from nbtl_search.data.splits import SPLITS
from nbtl_search.errors import DataError
from nbtl_search.spec import DataSettings


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def read(root: Path, *, val: float = 0.2, test: float = 0.2, seed: int = 0):
    return read_folder(root, val_fraction=val, test_fraction=test, split_seed=seed)


def class_of(n: int, name: str, *, split: str = "") -> list[str]:
    return [f"{split}{name}/{i}.jpg" for i in range(n)]


def counts(manifest) -> list[int]:
    return [len(manifest.items(split)) for split in SPLITS]


def test_one_folder_per_class(tmp_path):
    touch(tmp_path, *class_of(10, "b"), *class_of(10, "a"))
    manifest = read(tmp_path)
    assert manifest.classes == ("a", "b")
    assert counts(manifest) == [12, 4, 4]
    assert all(manifest.classes[i.label] == i.key.split("/")[0] for i in manifest.train)
    assert all(item.path == tmp_path / item.key for item in manifest.train)
    assert manifest == read(tmp_path)
    assert manifest != read(tmp_path, seed=1)


def test_test_fraction_zero_leaves_test_empty(tmp_path):
    touch(tmp_path, *class_of(2, "a"), *class_of(2, "b"))
    assert counts(read(tmp_path, test=0.0)) == [2, 2, 0]


def test_three_given_splits_are_kept(tmp_path):
    for split, n in (("train", 5), ("val", 2), ("test", 3)):
        touch(tmp_path / split, *class_of(n, "a"), *class_of(n, "b"))
    manifest = read(tmp_path)
    assert counts(manifest) == [10, 4, 6]
    assert {item.key.split("/")[0] for item in manifest.val} == {"val"}


def test_missing_val_is_split_off_train(tmp_path):
    for split, n in (("train", 10), ("test", 3)):
        touch(tmp_path / split, *class_of(n, "a"), *class_of(n, "b"))
    manifest = read(tmp_path)
    assert counts(manifest) == [16, 4, 6]
    assert all(item.key.startswith("train/") for item in manifest.val)


def test_missing_test_beside_val_stays_empty(tmp_path):
    for split, n in (("train", 5), ("val", 2)):
        touch(tmp_path / split, *class_of(n, "a"), *class_of(n, "b"))
    assert counts(read(tmp_path)) == [10, 4, 0]


def test_train_alone_is_split_in_three(tmp_path):
    touch(tmp_path / "train", *class_of(10, "a"), *class_of(10, "b"))
    assert counts(read(tmp_path)) == [12, 4, 4]


def test_train_may_be_a_class(tmp_path):
    touch(tmp_path, *class_of(5, "train"), *class_of(5, "bus"))
    assert read(tmp_path).classes == ("bus", "train")


def test_what_is_no_image_is_ignored(tmp_path):
    touch(tmp_path, *class_of(3, "a"), *class_of(3, "b"))
    expected = counts(read(tmp_path))
    touch(tmp_path, "LICENSE.txt", "tmp", "stray.jpg", ".hidden/1.jpg", "__MACOSX/1.jpg")
    touch(tmp_path, "a/.3.jpg", "a/tmp", "a/notes.txt", "a/.x/4.jpg")
    assert counts(read(tmp_path)) == expected


def test_extensions_in_any_case_and_deeper_folders(tmp_path):
    touch(tmp_path, "a/1.JPEG", "a/2.Png", "a/deep/3.jpg", *class_of(3, "b"))
    keys = {item.key for split in SPLITS for item in read(tmp_path).items(split)}
    assert {"a/1.JPEG", "a/2.Png", "a/deep/3.jpg"} <= keys


def test_class_names_may_hold_anything(tmp_path):
    names = ["F-16 A 'B'", "naïve\n", "c=d;$(x)"]
    touch(tmp_path, *(key for name in names for key in class_of(3, name)))
    assert set(read(tmp_path).classes) == set(names)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_small_class_is_named(tmp_path, n):
    touch(tmp_path, *class_of(9, "a"), *class_of(n, "small"))
    (tmp_path / "small").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=rf"'small \({n}\)'"):
        read(tmp_path)


def test_class_only_in_val_is_named(tmp_path):
    touch(tmp_path / "train", *class_of(3, "a"), *class_of(3, "b"))
    touch(tmp_path / "val", *class_of(3, "a"), *class_of(3, "b"), *class_of(3, "c"))
    with pytest.raises(DataError, match="'c' only in val/"):
        read(tmp_path)


def test_class_missing_in_test_is_named(tmp_path):
    for split in ("train", "val"):
        touch(tmp_path / split, *class_of(3, "a"), *class_of(3, "b"))
    touch(tmp_path / "test", *class_of(3, "a"))
    with pytest.raises(DataError, match="in test, got none of 'b'"):
        read(tmp_path)


def test_folder_of_one_folder_is_refused(tmp_path):
    touch(tmp_path, *class_of(9, "only"))
    with pytest.raises(DataError, match=r"n_classes >= 2.*folder per class"):
        read(tmp_path)


def test_unknown_dataset_lists_the_names(tmp_path):
    with pytest.raises(DataError, match=r"dtd, caltech256, cars.*'dtdd'; did you mean 'dtd'") as e:
        datasets.manifest(DataSettings(dataset="dtdd"), home=tmp_path)
    assert "\n" not in str(e.value)
