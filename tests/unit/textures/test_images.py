import hashlib
import inspect

import numpy as np
import pytest

from nbtl_search.errors import DataError
from nbtl_search.textures import source_families, target_families
from nbtl_search.textures.images import SOURCE_FAMILIES, TARGET_FAMILIES, render

ALL = (*TARGET_FAMILIES, *SOURCE_FAMILIES)


def test_families_are_many_and_disjoint():
    assert len(TARGET_FAMILIES) >= 12
    assert len(SOURCE_FAMILIES) >= 24
    assert not set(TARGET_FAMILIES) & set(SOURCE_FAMILIES)
    processes = [*target_families.FAMILIES.values(), *source_families.FAMILIES.values()]
    assert len({inspect.getsource(inspect.unwrap(process)) for process in processes}) == len(
        processes
    )


@pytest.mark.parametrize("family", ALL)
def test_render_is_deterministic_and_varied(family):
    image = render(family, seed=3, index=5, size_px=48)
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, render(family, seed=3, index=5, size_px=48))
    assert image.std() > 4
    for seed, index in ((3, 6), (4, 5)):
        assert not np.array_equal(image, render(family, seed=seed, index=index, size_px=48))


@pytest.mark.parametrize("size_px", [16, 115])
def test_render_of_any_size(size_px):
    for family in ALL:
        assert render(family, seed=0, index=0, size_px=size_px).shape == (size_px, size_px, 3)


def test_images_are_the_same_on_every_machine():
    """If this fails on purpose, raise textures.VERSION: caches and digests depend on it."""
    for families, expected in (
        (TARGET_FAMILIES, "e10b8679b0223908"),
        (SOURCE_FAMILIES, "4925864b3913e979"),
    ):
        digest = hashlib.sha256()
        for family in families:
            digest.update(render(family, seed=7, index=1, size_px=64).tobytes())
        assert digest.hexdigest()[:16] == expected


def test_colour_tells_nothing():
    """The mean colour of a class must not differ from the others by more than chance."""
    means = np.array(
        [
            [render(f, seed=0, index=i, size_px=24).mean(axis=(0, 1)) for i in range(48)]
            for f in TARGET_FAMILIES
        ]
    )
    centres = means[:, :24].mean(axis=1)
    distance = np.linalg.norm(means[:, 24:, None] - centres, axis=-1)
    accuracy = (distance.argmin(axis=-1) == np.arange(len(centres))[:, None]).mean()
    chance = 1 / len(centres)
    n = means[:, 24:].shape[0] * 24
    assert accuracy < chance + 4 * np.sqrt(chance / n)


def test_unknown_family():
    with pytest.raises(DataError, match="'velvet'"):
        render("velvet", seed=0, index=0, size_px=8)
