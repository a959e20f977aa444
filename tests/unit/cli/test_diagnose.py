"""`diagnose` on the command line: bad input is one line and exit 2, and nothing is half-made."""

import json
import sys
from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sqlalchemy import select

from nbtl_search.api import diagnose
from nbtl_search.cli import main
from nbtl_search.errors import SpecError
from nbtl_search.ledger import schema
from nbtl_search.ledger.database import connect
from nbtl_search.reports.terminal.diagnosis import MEANINGS, render
from nbtl_search.spec import TITLES, Diagnosis, Measured


@pytest.fixture
def folder(tmp_path):
    folder, noise = tmp_path / "photos", np.random.default_rng(0)
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            pixels = noise.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Return what runs the program in this process, and gives exit code and both outputs."""

    def program(*words):
        monkeypatch.setattr(sys, "argv", ["nbtl-search", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return program


@pytest.fixture
def refused(run, tmp_path):
    """Return what runs `diagnose`, and checks that it is refused in one line and leaves nothing."""

    def check(*words, says):
        home = tmp_path / "home"
        code, out, err = run("diagnose", *words, "--home", home)
        lines = err.strip().splitlines()
        assert (code, out, len(lines)) == (2, "", 1), err
        assert lines[0].startswith("Error: ")
        for part in says:
            assert part in lines[0], lines[0]
        assert not home.exists()

    return check


def test_an_unknown_target_gets_the_list(refused):
    refused("dtt", says=["'dtt'", "a study of the database", "dtd", "textures"])


def test_random_weights_are_refused(refused, folder):
    refused(folder, "--weights", "random", says=["pre-trained weights", "'random'"])


def test_a_bad_source_file_is_refused(refused, folder, tmp_path):
    source = tmp_path / "bad.npz"
    source.write_bytes(b"PK\x03\x04 no archive")
    shipped = (folder, "--model", "test_resnet", "--weights", "shipped", "--image-px", 64)
    refused(*shipped, "--source", source, says=["bad.npz", "prototypes"])
    refused(*shipped, "--source", tmp_path / "no.npz", says=["--source", "no.npz"])


def test_options_that_exclude_each_other_are_refused(refused, folder):
    refused(folder, "--no-random", "--random-epochs", 3, says=["exclude each other"])


def test_a_bad_setting_is_refused(refused, folder):
    refused(folder, "--set", "train.epoch=3", says=["'train.epoch'", "'epochs'"])


def test_the_function_refuses_alike(tmp_path):
    with pytest.raises(SpecError, match="got 'nowhere'"):
        diagnose("nowhere", home=tmp_path / "home")
    assert not (tmp_path / "home").exists()


def _diagnosis():
    measures = {
        "fixed_accuracy": Measured(name="fixed_accuracy", value=74.5, null=2.1),
        "random_accuracy": Measured(
            name="random_accuracy",
            value=61.25,
            null=2.1,
            settings={"budget": "reduced", "epochs": 12, "updates": 84},
        ),
        "fisher": Measured(name="fisher", value=3.4712345, null=5.08),
    }
    plain = {
        "dataset": "[red]folder[/red]\x1b[31m",
        "model": "mobilenetv2_100",
        "image_px": 112,
        "n_images": 240,
        "n_val": 80,
        "n_features": 1280,
        "n_classes": 10,
        "data_digest": "d" * 64,
        "weights_digest": "w" * 64,
        "device": "cpu",
        "seconds": 75.0,
        "measures": tuple(
            measures.get(name, Measured(name=name, reason="[bold]no[/bold] source; give one"))
            for name in TITLES
        ),
    }
    return Diagnosis.parse(plain)


def _shown(diagnosis):
    console = Console(width=80, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(render(diagnosis))
    return capture.get()


def test_the_table_fits_a_terminal_and_shows_no_markup():
    text = _shown(_diagnosis())
    assert max(map(len, text.splitlines())) <= 80
    assert r"[red]folder[/red]\x1b[31m" in text
    assert "\x1b" not in text
    assert "[bold]no[/bold] source" in text


def test_the_table_has_values_chance_the_papers_and_the_conclusion():
    text = " ".join(_shown(_diagnosis()).split())
    for part in (
        "74.50 2.10",
        "61.25 2.10",
        "3.471 5.08",
        "12 epochs, 84 updates: a reduced budget",
        "Caltech 83.4, DTD 74.6",
        "Caltech 1.35, DTD 3.47",
        "conclusion: borderline",  # 13 points are inside the noise of 80 images
    ):
        assert part in text, part


def test_every_measure_has_a_meaning():
    assert MEANINGS.keys() == TITLES.keys()


@pytest.mark.slow
@pytest.mark.postgres
def test_a_folder_is_diagnosed_stored_and_shown(run, tmp_path, folder):
    home = tmp_path / "home"
    words = (
        "diagnose", folder, "--model", "test_resnet", "--weights", "shipped", "--image-px", 64,
        "--random-epochs", 1, "--home", home, "--json",
    )  # fmt: skip
    try:
        code, out, err = run(*words)
        assert code == 0, err
        plain = json.loads(out)
        assert [measure["name"] for measure in plain["measures"]] == list(TITLES)
        assert plain["conclusion"]["regime"] == "unknown", "noise has nothing to learn"
        assert plain["n_classes"] == 2
        with closing(connect(None, home=home)) as storage, storage.engine.connect() as connection:
            (kept,) = connection.execute(select(schema.diagnosis.c.diagnosis)).scalars().all()
        assert Diagnosis.parse_json(kept).measured("fisher") is not None
    finally:
        run("db", "stop", "--home", home)
