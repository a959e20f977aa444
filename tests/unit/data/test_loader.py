import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nbtl_search.data.images import ImageFormat, ten_crop
from nbtl_search.data.loader import (
    Batch,
    EvalBatches,
    TenCropBatches,
    TrainBatches,
)
from nbtl_search.data.prepared import Prepared, prepare
from nbtl_search.errors import DataError
from nbtl_search.spec import AugmentSettings, DataSettings

FULL = AugmentSettings()
NONE = AugmentSettings(
    crop_scale=(1.0, 1.0), hflip=0.0, randaugment="", mixup=0.0, erasing=0.0, label_smoothing=0.0
)


@pytest.fixture
def prepared(settings: DataSettings, tmp_path) -> Prepared:
    return prepare(settings, home=tmp_path)


@pytest.fixture
def make(prepared: Prepared, image_format: ImageFormat):
    def make(**changes) -> TrainBatches:
        usual: dict[str, Any] = {
            "augment": FULL,
            "format": image_format,
            "batch_size": 4,
            "seed": 5,
        }
        return TrainBatches(prepared, **(usual | {"device": "cpu"} | changes))

    return make


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.targets, b.targets)
        and torch.equal(a.indices, b.indices)
        for a, b in zip(first, second, strict=True)
    )


def test_epoch_has_full_batches_only(make):
    batches = list(make().epoch(0))
    assert make().n_updates == len(batches) == 18 // 4
    for batch in batches:
        assert batch.images.shape == (4, 3, 16, 16)
        assert batch.images.dtype == torch.float32
        assert batch.targets.shape == (4, 3)


def test_few_images_give_one_short_batch(make):
    short = make(batch_size=100)
    assert short.n_updates == 1
    assert [len(batch.images) for batch in short.epoch(0)] == [18]


def test_batches_are_a_function_of_the_seed_and_the_epoch(make):
    batches = make()
    first = list(batches.epoch(1))
    list(batches.epoch(2))
    assert same(first, list(batches.epoch(1)))
    assert same(first, list(make().epoch(1)))
    assert not same(first, list(batches.epoch(2)))
    assert not same(first, list(make(seed=6).epoch(1)))


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_resumed_epoch_is_the_tail(make, start):
    whole = list(make().epoch(3))
    assert same(whole[start:], list(make().epoch(3, start=start)))


def test_epoch_left_in_the_middle_changes_nothing(make):
    batches = make()
    whole = list(make().epoch(0))
    next(batches.epoch(0))
    assert same(whole, list(batches.epoch(0)))


def test_two_epochs_may_be_read_in_turns(make):
    batches = make()
    pairs = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
    assert same([a for a, _ in pairs], list(make().epoch(0)))
    assert same([b for _, b in pairs], list(make().epoch(1)))


def test_loader_processes_give_the_same_bits(make):
    alone = make()
    helped = make(n_workers=2)
    for e, start in ((0, 0), (1, 2), (2, 0)):
        assert same(list(alone.epoch(e, start=start)), list(helped.epoch(e, start=start)))
    next(helped.epoch(3))
    assert same(list(alone.epoch(4)), list(helped.epoch(4)))


def test_every_image_is_seen_once_an_epoch(make, prepared, image_format):
    plain = make(augment=NONE, batch_size=6)
    seen = torch.cat([batch.images for batch in plain.epoch(0)])
    known = torch.cat(
        [
            images
            for images, _ in EvalBatches(
                prepared, "train", format=image_format, batch_size=5, device="cpu"
            )
        ]
    )
    order = [next(i for i, k in enumerate(known) if torch.equal(s, k)) for s in seen]
    assert sorted(order) == list(range(18))
    assert order != list(range(18))
    assert torch.cat([batch.indices for batch in plain.epoch(0)]).tolist() == order
    targets = torch.cat([batch.targets for batch in plain.epoch(0)])
    assert targets.argmax(dim=1).tolist() == prepared.labels("train")[order].tolist()
    assert set(targets.unique().tolist()) == {0.0, 1.0}


def test_train_and_validation_together(make, prepared):
    both = make(augment=NONE, splits=("train", "val"), batch_size=24)
    (batch,) = both.epoch(0)
    assert batch.targets.sum(dim=0).tolist() == [8.0, 8.0, 8.0]
    labels = np.concatenate([prepared.labels("train"), prepared.labels("val")])
    assert batch.targets.argmax(dim=1).tolist() == labels[batch.indices].tolist()
    assert sorted(batch.indices.tolist()) == list(range(24))


UNTOUCHED = """
import random, sys
from pathlib import Path
import numpy as np
import torch
from nbtl_search.data.prepared import prepare
from nbtl_search.data.images import ImageFormat
from nbtl_search.data.loader import TrainBatches
from nbtl_search.spec import AugmentSettings, DataSettings

def state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

prepared = prepare(DataSettings(dataset=sys.argv[1], image_px=16), home=Path(sys.argv[2]))
half = (0.5, 0.5, 0.5)
size = ImageFormat(image_px=16, crop_pct=1.0, interpolation="bicubic", mean=half, std=half)
before = state()
batches = TrainBatches(
    prepared, augment=AugmentSettings(), format=size, batch_size=4, seed=0, device="cpu"
)
for n, _ in enumerate(batches.epoch(0), start=1):
    assert state() == before
print(n)
"""


def test_global_generators_are_left_alone(settings, tmp_path):
    """In a process of its own: beartype, which checks shapes here, draws random numbers."""
    command = [sys.executable, "-c", UNTOUCHED, settings.dataset, str(tmp_path)]
    assert subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout == b"4\n"


def test_global_generators_do_not_matter(make):
    random.seed(1)
    torch.manual_seed(1)
    first = list(make().epoch(0))
    random.seed(2)
    torch.manual_seed(2)
    assert same(first, list(make().epoch(0)))


@pytest.mark.parametrize(
    "part",
    [
        {"hflip": 0.5},
        {"randaugment": "rand-m9-mstd0.5-inc1"},
        {"mixup": 0.2},
        {"erasing": 0.5},
        {"crop_scale": (0.08, 1.0)},
    ],
)
def test_each_part_is_switched_by_its_own_setting(make, part):
    plain = list(make(augment=NONE).epoch(0))
    changed = list(make(augment=NONE.replace(**part)).epoch(0))
    assert not same(plain, changed)


def test_hflip_of_every_image_is_the_mirror(make):
    plain = list(make(augment=NONE).epoch(0))
    flipped = list(make(augment=NONE.replace(hflip=1.0)).epoch(0))
    assert same([replace(batch, images=batch.images.flip(3)) for batch in plain], flipped)


def test_evaluation_batches_are_normalised_pixels_in_order(prepared, image_format):
    batches = EvalBatches(prepared, "val", format=image_format, batch_size=4, device="cpu")
    assert len(batches) == 2
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    pixels = prepared.evaluation("val", image_format).astype(np.float64) / 255
    expected = (pixels - image_format.mean) / image_format.std
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=1e-5)


def test_ten_crop_batches_are_those_of_the_originals_in_order(tmp_path, drawn, image_format):
    """Of images that are larger than twice the input, and so are kept reduced."""
    for label in "ab":
        for i in range(30):
            drawn(tmp_path / label / f"{i}.jpg", seed=i, size=(50 + i, 70))
    settings = DataSettings(dataset=str(tmp_path), image_px=16, test_fraction=0.4)
    prepared = prepare(settings, home=tmp_path / "home", splits=("test",))
    assert min(prepared.pixels("test", 0).shape[:2]) == 32
    batches = TenCropBatches(prepared, "test", format=image_format, batch_size=5, device="cpu")
    parts = list(batches)
    assert len(prepared.labels("test")) == 24
    assert [len(labels) for _, labels in parts] == [5, 5, 5, 5, 4]
    assert len(batches) == 5
    assert torch.equal(
        torch.cat([labels for _, labels in parts]), torch.from_numpy(prepared.labels("test"))
    )
    mean, std = np.array(image_format.mean) * 255, np.array(image_format.std) * 255
    for i, crops in enumerate(torch.cat([images for images, _ in parts])):
        want = (ten_crop(prepared.original("test", i), image_format) - mean) / std
        np.testing.assert_allclose(crops.permute(0, 2, 3, 1), want, rtol=1e-5, atol=1e-5)


def test_ten_crops_of_a_split_that_was_not_asked_for_are_refused(prepared, image_format):
    batches = TenCropBatches(prepared, "test", format=image_format, batch_size=5, device="cpu")
    with pytest.raises(DataError, match="got 'test'"):
        next(iter(batches))


@pytest.mark.gpu
def test_batches_arrive_on_the_device(make):
    here, there = list(make().epoch(0)), list(make(device="cuda").epoch(0))
    for a, b in zip(here, there, strict=True):
        assert b.images.device.type == b.targets.device.type == "cuda"
        torch.testing.assert_close(a.images, b.images.cpu(), atol=0.02, rtol=0)
        torch.testing.assert_close(a.targets, b.targets.cpu())
        assert torch.equal(a.indices, b.indices.cpu())
