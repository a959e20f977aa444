"""`create --start` in a real database: what is enqueued, what is said, what is refused."""

import json
import sys
from typing import Final

import numpy as np
import pytest
from PIL import Image

from nbtl_search import api
from nbtl_search.cli import main
from nbtl_search.errors import StudyExistsError
from nbtl_search.space.regimes import decay_updates
from nbtl_search.study.store import DIALS, NAME
from nbtl_search.workspace.workspace import Workspace

WANTED: Final = "smaller-dissimilar"
SMALL = (
    "model.name='test_resnet'",
    "model.weights='shipped'",
    "data.image_px=48",
    "train.epochs=20",
    "train.batch_size=4",
)
EXTENDED = (*SMALL, "search.space='extended'")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, noise = tmp_path_factory.mktemp("images") / "photos", np.random.default_rng(0)
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = noise.integers(0, 255, (48, 48, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def made(images, home, database_url):
    """Return what makes the study `photos`."""

    def create(*, start=(WANTED,)):
        return api.create(
            str(images), settings=EXTENDED, start=start, home=home, storage=database_url
        )

    return create


def test_a_start_is_a_trial_with_decay_in_the_studys_updates(made, home, database_url):
    spec = made()
    assert spec.facts is not None
    expected = decay_updates(WANTED, n_updates=spec.facts.n_train // 4 * 20)
    assert spec.search.known[-1].dials["decay_updates"] == expected
    with Workspace(home, database_url).open_study("photos") as study:
        attributes = [trial.user_attrs for trial in study.optuna.get_trials(deepcopy=False)]
    (dials,) = [one[DIALS] for one in attributes if one.get(NAME) == f"survey-{WANTED}"]
    assert json.loads(dials)["decay_updates"] == expected
    assert json.loads(dials)["n_low"] == round(8 / 22 * spec.facts.n_blocks)


def test_the_same_again_changes_nothing_and_another_start_is_another_study(made):
    spec = made()
    assert made() == spec
    with pytest.raises(StudyExistsError, match="exists with another specification"):
        made(start=())


def test_the_command_says_what_is_tried(images, home, database_url, monkeypatch, capsys):
    monkeypatch.setenv("NBTL_STORAGE", database_url)
    words = ["create", "--dataset", str(images), "--start", WANTED, "--home", str(home)]
    changes = [word for setting in SMALL for word in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", ["nbtl-search", *words, *changes])
    with pytest.raises(SystemExit) as ended:
        main()
    out, _ = capsys.readouterr()
    assert ended.value.code in (0, None)
    (line,) = [line for line in out.splitlines() if line.startswith("  start ")]
    assert f"survey-{WANTED}" in line
    assert "momentum = 0.8" in line
    assert "[train]" in line  # the space `paper` does not search decay in updates


def test_the_command_refuses_another_regime_in_one_line(monkeypatch, capsys, tmp_path):
    unmade = tmp_path / "home"
    words = ["create", "--dataset", "textures", "--start", "small", "--home", str(unmade)]
    monkeypatch.setattr(sys, "argv", ["nbtl-search", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    _, err = capsys.readouterr()
    assert ended.value.code == 2
    assert "'small' is not one of" in err
    assert not unmade.exists()
