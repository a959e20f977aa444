import hypothesis.strategies as st
import pytest
from hypothesis import given

from nbtl_search.data.splits import Item, Manifest, stratified_split
from nbtl_search.errors import DataError


def item(label: int, key: str) -> Item:
    return Item(path=None, label=label, key=key)


CLASSES = st.dictionaries(
    st.text("abcdef ", min_size=1, max_size=4), st.integers(3, 40), min_size=1, max_size=5
)


def keys_of(sizes: dict[str, int]) -> dict[str, list[str]]:
    return {name: [f"{name}/{i}.jpg" for i in range(n)] for name, n in sizes.items()}


@given(
    sizes=CLASSES,
    seed=st.integers(0, 5),
    val=st.floats(0.01, 0.49),
    test=st.floats(0.01, 0.49),
)
def test_split_is_disjoint_complete_and_stratified(sizes, seed, val, test):
    keys = keys_of(sizes)
    split = stratified_split(keys, seed=seed, fractions={"val": val, "test": test}, rest="train")
    assert set(split) == {"train", "val", "test"}
    for name, members in keys.items():
        parts = [split[part][name] for part in ("train", "val", "test")]
        assert sorted(key for part in parts for key in part) == sorted(members)
        assert all(parts)
        for part, fraction in (("val", val), ("test", test)):
            n, wanted = len(split[part][name]), len(members) * fraction
            crowded = round(wanted) + 1 >= len(members) / 2
            assert abs(n - wanted) <= 1 or crowded


@given(sizes=CLASSES, seed=st.integers(0, 5))
def test_split_does_not_depend_on_the_order_of_files(sizes, seed):
    keys = keys_of(sizes)
    shuffled = {name: members[::-1] for name, members in keys.items()}
    first, second = (
        stratified_split(k, seed=seed, fractions={"val": 0.3}, rest="train")
        for k in (keys, shuffled)
    )
    assert first == second


def test_another_seed_gives_another_split():
    keys = keys_of({"a": 30})
    splits = [
        stratified_split(keys, seed=seed, fractions={"val": 0.3}, rest="train") for seed in (0, 1)
    ]
    assert splits[0] != splits[1]


def test_more_images_leave_the_order_of_the_others():
    few, many = (
        stratified_split(keys_of({"a": n}), seed=0, fractions={"val": 0.5}, rest="train")
        for n in (30, 31)
    )
    assert set(few["val"]["a"]) - set(many["val"]["a"]) <= {few["val"]["a"][-1]}


def test_too_few_images_names_the_class():
    with pytest.raises(DataError, match=r"at least 3 images.*'tiny \(2\)'"):
        stratified_split(
            keys_of({"tiny": 2, "large": 9}),
            seed=0,
            fractions={"val": 0.2, "test": 0.2},
            rest="train",
        )


def test_fractions_must_leave_something():
    with pytest.raises(DataError, match="val_fraction"):
        stratified_split(keys_of({"a": 9}), seed=0, fractions={"val": 0.6, "test": 0.4}, rest="x")


def test_manifest_refuses_one_class():
    with pytest.raises(DataError, match="n_classes >= 2"):
        Manifest(name="m", classes=("a",), train=(item(0, "1"),), val=(item(0, "2"),))


def test_manifest_refuses_an_image_in_two_splits():
    both = (item(0, "1"), item(1, "2"))
    with pytest.raises(DataError, match="'1' twice"):
        Manifest(name="m", classes=("a", "b"), train=both, val=both)


def test_manifest_refuses_a_class_without_validation_images():
    with pytest.raises(DataError, match="in val, got none of 'b'"):
        Manifest(
            name="m",
            classes=("a", "b"),
            train=(item(0, "1"), item(1, "2")),
            val=(item(0, "3"),),
        )
