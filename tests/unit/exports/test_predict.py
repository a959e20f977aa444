"""Predictions from exported folders, against slow computations of the same."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import timm.data
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.special import softmax
from scipy.stats import norm
from torchvision.transforms import functional

from nbtl_search.cli.predictions import predict_command
from nbtl_search.errors import DataError, NbtlError, SpecError, WeightsError
from nbtl_search.exports.predict import find_pictures, true_labels
from nbtl_search.workspace import models
from nbtl_search.workspace.models import predict
from tests.exportable import CLASSES, make_verdict

# What folders can be called: the class names without the separator of paths.
FOLDERS = (CLASSES[0], CLASSES[2])


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    return make_verdict(tmp_path_factory.mktemp("finals"))


@pytest.fixture(scope="module")
def model(verdict, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    models.write(verdict, folder, study="x")
    return folder


@pytest.fixture(scope="module")
def ensemble(verdict, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "ensemble"
    models.write(verdict, folder, study="x", seed_ensemble=True)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two class folders of noise in all shapes and modes; one file is cut off."""
    root, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, name in enumerate(FOLDERS):
        (root / name / "deeper").mkdir(parents=True)
        for i in range(4 + number):
            height, width = noise.integers(20, 90, 2)
            colour = noise.integers(0, 256, 3)
            pixels = (noise.integers(0, 128, (height, width, 3)) + colour // 2).astype(np.uint8)
            folder = root / name / ("deeper" if i == 0 else ".")
            image = Image.fromarray(pixels).convert(("RGB", "L", "RGBA", "P")[i % 4])
            image.save(folder / f"{i}.png")
    whole = (root / FOLDERS[0] / "1.png").read_bytes()
    (root / FOLDERS[0] / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("no image")
    (root / FOLDERS[0] / ".hidden.png").write_bytes(whole)
    return root


def run(*arguments):
    return CliRunner().invoke(predict_command, list(map(str, arguments)), standalone_mode=False)


def slow_logits(folder, file):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.inference_mode():
        return model(transform(Image.open(file).convert("RGB"))[None]).numpy().astype(float)[0]


class TestProbabilities:
    def test_they_are_the_softmax_of_timms_evaluation(self, model, photos):
        found = predict(model, [photos], device="cpu", batch_size=3)
        read = [image for image in found.images if image.error is None]
        assert len(read) == 9
        for image in read:
            expected = softmax(slow_logits(model, image.file))
            assert image.probabilities == pytest.approx(expected, abs=1e-6)
            assert image.best(1)[0][0] == expected.argmax()

    def test_the_ensemble_is_the_mean_softmax(self, ensemble, photos):
        file = photos / FOLDERS[1] / "2.png"
        (image,) = predict(ensemble, [file], device="cpu").images
        members = [softmax(slow_logits(ensemble / f"seed-{i}", file)) for i in (1, 2, 3, 4)]
        assert np.ptp(members, axis=0).max() > 1e-3
        assert image.probabilities == pytest.approx(np.mean(members, axis=0), abs=1e-6)

    def test_ten_crops_are_the_mean_softmax_of_ten(self, model, photos):
        file = photos / FOLDERS[1] / "3.png"
        (image,) = predict(model, [file], device="cpu", ten_crop=True).images
        network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
        config: Any = network.pretrained_cfg
        size_px = int(32 / config["crop_pct"])
        resized = functional.resize(Image.open(file).convert("RGB"), size_px)
        crops = []
        for picture in (resized, functional.hflip(resized)):
            width, height = picture.size
            corners = [(0, 0), (width - 32, 0), (0, height - 32), (width - 32, height - 32)]
            centre = (round((width - 32) / 2), round((height - 32) / 2))
            crops += [picture.crop((x, y, x + 32, y + 32)) for x, y in [*corners, centre]]
        batch = torch.stack(
            [
                functional.normalize(functional.to_tensor(c), config["mean"], config["std"])
                for c in crops
            ]
        )
        with torch.inference_mode():
            logits = network(batch).numpy().astype(float)
        assert image.probabilities == pytest.approx(softmax(logits, axis=1).mean(0), abs=1e-6)

    @pytest.mark.parametrize("ten_crop", [False, True])
    def test_the_batch_size_changes_nothing(self, model, photos, ten_crop):
        one, many = (
            predict(model, [photos], device="cpu", batch_size=n, ten_crop=ten_crop) for n in (1, 64)
        )
        for a, b in zip(one.images, many.images, strict=True):
            assert a.file == b.file
            if a.probabilities is not None:
                assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)

    def test_a_folder_that_timm_wrote_itself(self, tmp_path, photos):
        network = timm.create_model("test_resnet", num_classes=3)
        timm.models.save_for_hf(
            network, tmp_path / "m", {"label_names": ["a", "b", "c"]}, safe_serialization=True
        )
        file = photos / FOLDERS[1] / "1.png"
        found = predict(tmp_path / "m", [file], device="cpu")
        assert found.labels == ("a", "b", "c")
        expected = softmax(slow_logits(tmp_path / "m", file))
        assert found.images[0].probabilities == pytest.approx(expected, abs=1e-6)

    def test_it_needs_no_database(self, model, photos):
        code = (
            "import sys; from nbtl_search.cli.app import app\n"
            "from nbtl_search import api\n"
            "found = api.predict(sys.argv[1], sys.argv[2:], device='cpu')\n"
            "assert len(found.images) == 10\n"
            "print(*{name.partition('.')[0] for name in sys.modules})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, model, photos], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert {"torch", "timm"} <= set(done.stdout.split())
        assert not {"optuna", "sqlalchemy", "psycopg2"} & set(done.stdout.split())


class TestCounts:
    def test_the_matrix_agrees_with_a_slow_count(self, model, photos):
        found = predict(model, [photos], device="cpu")
        expected = np.zeros((3, 3), dtype=int)
        for name in FOLDERS:
            for file in (photos / name).rglob("[0-9].png"):
                expected[CLASSES.index(name), slow_logits(model, file).argmax()] += 1
        assert found.confusion is not None
        assert found.confusion.matrix.tolist() == expected.tolist()
        assert found.confusion.top1 == pytest.approx(100 * expected.trace() / 9)
        assert [(i, n) for i, n, _ in found.confusion.per_class()] == [(0, 4), (2, 5)]

    def test_the_interval_is_wilsons(self, model, photos):
        confusion = predict(model, [photos], device="cpu").confusion
        assert confusion is not None
        n, p, z = 9, confusion.n_right / 9, norm.ppf(0.975)
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
        assert confusion.interval() == pytest.approx((low, high), abs=1e-9)

    def test_other_folders_are_just_predicted(self, model, photos, tmp_path):
        (tmp_path / "holiday").mkdir()
        image = (photos / FOLDERS[1] / "1.png").read_bytes()
        (tmp_path / "holiday/a.png").write_bytes(image)
        assert predict(model, [tmp_path], device="cpu").confusion is None

    def test_a_files_nearest_argument_decides(self, photos):
        pictures = find_pictures([photos / FOLDERS[1], photos / FOLDERS[0] / "1.png", photos])
        labels = true_labels(pictures, CLASSES)
        assert len(pictures) == 10
        assert labels[:6] == [2, 2, 2, 2, 2, None]

    def test_names_that_macos_decomposes(self, tmp_path):
        (tmp_path / "gru\u0308n").mkdir()
        (tmp_path / "gru\u0308n/a.png").write_bytes(b"")
        assert true_labels(find_pictures([tmp_path]), ["gr\u00fcn"]) == [0]


class TestCommand:
    def test_the_table_shows_names_as_they_are(self, model, photos):
        done = run(model, photos / FOLDERS[1], "--device", "cpu", "--top-k", 2)
        assert done.return_value == 0, done.output
        text = "".join(done.stdout.split())
        assert "[red]" in text
        assert "5images" in text
        assert "confusion" in text

    def test_a_damaged_file_is_named_and_left_out(self, model, photos):
        done = run(model, photos / FOLDERS[0], "--device", "cpu", "--json")
        assert done.return_value == 0
        rows = json.loads(done.stdout)
        bad = [row for row in rows if "error" in row]
        assert [Path(row["file"]).name for row in bad] == ["cut.png"]
        assert bad[0]["predictions"] == []
        assert "cut.png" in done.stderr
        assert "1 of 5 files could not be read" in done.stderr
        good = next(row for row in rows if "error" not in row)
        assert sum(p["probability"] for p in good["predictions"]) == pytest.approx(1)
        assert good["truth"] == CLASSES[0]

    def test_nothing_but_damaged_files(self, model, photos):
        done = run(model, photos / FOLDERS[0] / "cut.png", photos / "notes.txt", "--device", "cpu")
        assert done.return_value == 1
        assert done.stdout == ""
        assert "2 of 2 files could not be read" in done.stderr

    def test_csv(self, model, photos):
        done = run(model, photos / FOLDERS[1], "--device", "cpu", "--csv", "--top-k", 2)
        rows = list(csv.DictReader(done.stdout.splitlines()))
        assert len(rows) == 10
        assert [row["rank"] for row in rows[:2]] == ["1", "2"]
        assert {row["label"] for row in rows} <= set(CLASSES)

    @pytest.mark.parametrize("ending", ["csv", "json"])
    def test_the_matrix_goes_to_a_file(self, model, photos, tmp_path, ending):
        file = tmp_path / f"matrix.{ending}"
        done = run(model, photos, "--device", "cpu", "--confusion", file)
        assert done.return_value == 0
        if ending == "json":
            content = json.loads(file.read_text("utf-8"))
            matrix = content["matrix"]
            assert content["n"] == 9
        else:
            rows = list(csv.reader(file.read_text("utf-8").splitlines()))
            assert tuple(rows[0][1:]) == CLASSES
            matrix = [[int(n) for n in row[1:]] for row in rows[1:]]
        found = predict(model, [photos], device="cpu").confusion
        assert found is not None
        assert matrix == found.matrix.tolist()

    def test_a_glob_that_the_shell_left(self, model, photos):
        done = run(model, photos / "*" / "[12].png", "--device", "cpu", "--json")
        assert len(json.loads(done.stdout)) == 4

    def test_a_name_of_bytes_and_control_characters(self, model, photos, tmp_path):
        file = os.fsencode(tmp_path) + b"/\x1b[31m\xff.png"
        with open(file, "wb") as opened:  # noqa: PTH123 a name that is no text
            opened.write((photos / FOLDERS[1] / "1.png").read_bytes())
        for option in ("--csv", "--json", "--top-k=1"):
            done = run(model, tmp_path, "--device", "cpu", option)
            assert done.return_value == 0, done.output
            assert option == "--csv" or "\x1b" not in done.stdout


class TestRefusals:
    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda m: (m / "config.json").unlink(), "config.json"),
            (lambda m: (m / "model.safetensors").unlink(), "pickled weights are never loaded"),
            (lambda m: (m / "config.json").write_text("{"), "config.json"),
            (lambda m: (m / "config.json").write_text("[1]"), "a JSON list"),
            (lambda m: _change(m, label_names=["a"]), "1 label_names for 3 classes"),
            (lambda m: _change(m, label_names=None), "no label_names"),
            (lambda m: _change(m, architecture="no_such_net"), "no_such_net"),
            (lambda m: _change(m, nbtl_search=None, architecture="test_vit"), "fit their archi"),
            (lambda m: _flip(m / "model.safetensors"), "sha256"),
        ],
    )
    def test_a_damaged_model_is_one_line(self, model, photos, tmp_path, damage, reason):
        import shutil

        copy = tmp_path / "model"
        shutil.copytree(model, copy)
        damage(copy)
        with pytest.raises(WeightsError, match=reason) as caught:
            predict(copy, [photos], device="cpu")
        assert "\n" not in str(caught.value)

    def test_pickled_weights_are_never_loaded(self, model, photos, tmp_path):
        (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
        torch.save(safetensors.torch.load_file(model / "model.safetensors"),
                   tmp_path / "pytorch_model.bin")  # fmt: skip
        with pytest.raises(WeightsError, match="pickled weights are never loaded"):
            predict(tmp_path, [photos], device="cpu")

    def test_a_member_outside_the_folder(self, photos, tmp_path):
        (tmp_path / "ensemble.json").write_text(json.dumps({"members": [{"folder": "../x"}]}))
        with pytest.raises(WeightsError, match="no subfolders"):
            predict(tmp_path, [photos], device="cpu")

    @pytest.mark.parametrize(
        ("arguments", "kind", "reason"),
        [
            (["nothing.jpg"], DataError, "nothing.jpg"),
            (["*.nothing"], DataError, "glob"),
            (["PHOTOS", "--device", "cuda:99"], SpecError, "^device must"),
            (["PHOTOS", "--device", "abacus"], SpecError, "^device in"),
            (["PHOTOS", "--confusion", "matrix.xls"], SpecError, "matrix.xls"),
        ],
    )
    def test_bad_arguments(self, model, photos, arguments, kind, reason):
        words = [str(photos) if word == "PHOTOS" else word for word in arguments]
        done = run(model, *words)
        assert isinstance(done.exception, kind)
        assert isinstance(done.exception, NbtlError)
        with pytest.raises(kind, match=reason):
            raise done.exception

    def test_a_matrix_without_classes(self, model, photos, tmp_path):
        file = tmp_path / "m.csv"
        done = run(model, photos / FOLDERS[1] / "1.png", "--device", "cpu", "--confusion", file)
        assert isinstance(done.exception, SpecError)
        assert not file.exists()

    def test_a_folder_without_images(self, model, tmp_path):
        with pytest.raises(DataError, match="a folder with images"):
            predict(model, [tmp_path], device="cpu")

    def test_no_model(self, photos, tmp_path):
        with pytest.raises(WeightsError, match="no such folder"):
            predict(tmp_path / "none", [photos], device="cpu")


def _change(model, **changes):
    config = json.loads((model / "config.json").read_text("utf-8")) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (model / "config.json").write_text(json.dumps(kept), "utf-8")


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
