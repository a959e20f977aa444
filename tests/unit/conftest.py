"""A tiny task, made once: 3 classes of 32-px pictures, a network, and a weights file for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nbtl_search.spec import DataSettings, Recipe

# torch is imported by the fixtures that need it: half of the unit tests do without, and importing
# it takes longer than they do.

MODEL = "test_resnet"
N_PER_CLASS = 14
COLOURS = {"amber": (255, 190, 0), "blue": (20, 40, 220), "grey": (128, 128, 128)}


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy pictures whose class is their colour."""
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(N_PER_CLASS):
            pixels = np.array(colour) + noise.normal(0, 60, (40, 36, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_folder: Path) -> DataSettings:
    return DataSettings(dataset=str(tiny_folder), image_px=32)


@pytest.fixture(scope="session")
def tiny_prepared(tiny_data: DataSettings, tiny_home: Path) -> Any:
    from nbtl_search.data.prepared import prepare

    return prepare(tiny_data, home=tiny_home)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained network as far as these tests can tell: with a classifier of 11 classes."""
    import safetensors.torch
    import timm
    import torch

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        model = timm.create_model(MODEL, num_classes=11)
    safetensors.torch.save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_recipe(tiny_data: DataSettings, tiny_weights: Path) -> Callable[..., Recipe]:
    """Return a maker of recipes: dials, train, augment, model by section, or a whole field."""

    def make(**sections: Any) -> Recipe:
        plain: dict[str, Any] = {
            "data": tiny_data.plain(),
            "model": {"name": MODEL, "weights": str(tiny_weights)},
            "train": {
                "epochs": 2,
                "batch_size": 8,
                "device": "cpu",
                "precision": "fp32",
                "n_threads": 1,
                "seed": 3,
            },
            "dials": {
                "reinit_layers": 2,
                "lr_high": 0.05,
                "n_low": 2,
                "lr_low_ratio": 0.3,
                "n_l2sp": 3,
                "alpha": 0.01,
                "beta": 0.001,
            },
        }
        for name, value in sections.items():
            plain[name] = plain.get(name, {}) | value if isinstance(value, dict) else value
        return Recipe.parse(plain)

    return make


@pytest.fixture(scope="session")
def pretrained(tiny_home: Path) -> Callable[..., Any]:
    """Return a maker of the network of a recipe's weights."""
    from nbtl_search.data.prepared import prepare
    from nbtl_search.source.features import source_network

    def make(recipe: Recipe, *, n_threads: int | None = 1) -> Any:
        prepared = prepare(recipe.data, home=tiny_home)
        return source_network(recipe, home=tiny_home, prepared=prepared, n_threads=n_threads)

    return make


@pytest.fixture(scope="session")
def extracted(
    pretrained: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a maker of the features of a recipe's images under its weights."""
    from nbtl_search.data.prepared import prepare
    from nbtl_search.source.features import extract

    def make(recipe: Recipe, *, home: Path, n_threads: int | None = 1, **options: Any) -> Any:
        prepared = prepare(recipe.data, home=home)
        source = pretrained(recipe, n_threads=n_threads)
        return extract(prepared, source, home=home, **options)

    return make


@pytest.fixture
def home(tmp_path: Path, tiny_home: Path, tiny_prepared: Any) -> Path:
    """A home of its own; the decoded images are shared."""
    home = tmp_path / "home"
    home.mkdir()
    assert tiny_prepared.directory.is_relative_to(tiny_home / "data")
    (home / "data").symlink_to(tiny_home / "data")
    return home
