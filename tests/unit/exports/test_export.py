"""Exported folders: what timm makes of them, and what an export refuses."""

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
from huggingface_hub import ModelCard
from PIL import Image

from nbtl_search.data import images
from nbtl_search.data.images import ImageFormat
from nbtl_search.errors import WeightsError
from nbtl_search.exports import export as export_module
from nbtl_search.files import atomic
from nbtl_search.spec.verdict import FinalWeights
from nbtl_search.workspace import models
from tests.exportable import CLASSES, HOST, MODEL, alone, make_run, make_verdict

# A process that knows nothing of us: timm's loader, its data configuration and its label names.
STRANGER = """
import json, sys, timm, timm.data, torch
folder, inputs, outputs = sys.argv[1:]
model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
with torch.inference_mode():
    torch.save(model(torch.load(inputs, weights_only=True)), outputs)
config = timm.data.resolve_model_data_config(model, use_test_size=True)
names = model.pretrained_cfg["label_names"]
assert timm.data.CustomDatasetInfo(names).index_to_description(1) == names[1]
print(json.dumps({"config": config, "names": names, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    return make_verdict(tmp_path_factory.mktemp("finals"))


@pytest.fixture(scope="module")
def exported(verdict, tmp_path_factory):
    """An export in a folder whose name is no help."""
    folder = tmp_path_factory.mktemp("export") / "my model: 'ü'"
    models.write(verdict, folder, study="pets *1*")
    return folder


def source_of(verdict, *, candidate, seed):
    found = [r for r in verdict.runs if (r.candidate, r.seed) == (candidate, seed)]
    assert len(found) == 1
    return Path(found[0].weights.folder)


def broken_run(verdict, **changes):
    """Give the verdict other words about the weights of the run that is exported."""
    runs = [
        run.replace(weights=run.weights.replace(**changes))
        if (run.candidate, run.seed) == (7, 101)
        else run
        for run in verdict.runs
    ]
    return verdict.replace(runs=tuple(runs))


class TestTimm:
    def test_a_process_without_us_gets_equal_logits(self, verdict, exported, tmp_path):
        batch = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        torch.save(batch, tmp_path / "in.pt")
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, exported, tmp_path / "in.pt", tmp_path / "out.pt"],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert not [name for name in told["modules"] if name.startswith("nbtl_search")]
        source = source_of(verdict, candidate=7, seed=101)
        model = timm.create_model(MODEL, num_classes=3)
        model.load_state_dict(safetensors.torch.load_file(source / "model.safetensors"))
        with torch.inference_mode():
            expected = model.eval()(batch)
        logits = torch.load(tmp_path / "out.pt", weights_only=True)
        assert float((logits - expected).abs().max()) <= 1e-5
        assert told["names"] == list(CLASSES)
        assert told["config"] == {
            "input_size": [3, 32, 32], "interpolation": "bilinear", "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3], "crop_pct": 0.9, "crop_mode": "center",
        }  # fmt: skip

    def test_its_transform_gives_the_pixels_that_we_evaluate(self, exported):
        about = json.loads((exported / "config.json").read_text("utf-8"))["pretrained_cfg"]
        model = timm.create_model(f"local-dir:{exported}", pretrained=True)
        config = timm.data.resolve_model_data_config(model)
        theirs = timm.data.create_transform(**config, is_training=False)
        image_format = ImageFormat(
            image_px=32, crop_pct=0.9, interpolation="bilinear", mean=tuple(about["mean"]),
            std=tuple(about["std"]),
        )  # fmt: skip
        noise = np.random.default_rng(0).integers(0, 256, (51, 70, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        pixels = theirs(image) * torch.tensor(about["std"])[:, None, None]
        pixels = (pixels + torch.tensor(about["mean"])[:, None, None]) * 255
        ours = images.evaluation_transform(image_format)(image)
        assert np.array_equal(pixels.permute(1, 2, 0).round().numpy().astype(np.uint8), ours)

    @pytest.mark.parametrize(
        "model",
        [
            "test_vit",
            pytest.param("inception_v4", marks=pytest.mark.slow),
            "test_efficientnet.r160_in1k",
        ],
    )
    def test_other_networks(self, model, tmp_path):
        """A fixed input size, a label offset, and a tag in the name."""
        size_px = {"test_vit": 160, "inception_v4": 96}.get(model, 64)
        if model == "inception_v4":  # 170 MB a folder: one run is enough
            verdict = _one_run(tmp_path, model=model, image_px=size_px)
        else:
            verdict = make_verdict(tmp_path / "runs", model=model, image_px=size_px)
        models.write(verdict, tmp_path / "out", study="x")
        loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).state_dict()
        source = source_of(verdict, candidate=7, seed=101)
        stored = safetensors.torch.load_file(source / "model.safetensors")
        assert loaded.keys() == stored.keys()
        assert all(torch.equal(loaded[name], stored[name]) for name in stored)


def _one_run(tmp_path, **settings):
    verdict = make_verdict(tmp_path / "small")
    digest = make_run(tmp_path / "large", seed=5, **settings)
    runs = [r for r in verdict.runs if (r.candidate, r.seed) == (7, 101)]
    weights = FinalWeights(host=HOST, folder=str(tmp_path / "large"), digest=digest)
    return verdict.replace(runs=(runs[0].replace(weights=weights),))


class TestChoice:
    def test_the_first_seed_is_exported_not_the_best_on_test(self, verdict, exported):
        config = json.loads((exported / "config.json").read_text("utf-8"))["nbtl_search"]
        best = max((r for r in verdict.runs if r.candidate == 7), key=lambda r: r.test.top1)
        assert (config["seed"], best.seed) == (101, 102)
        assert config["weights_digest"] != best.weights.digest
        assert config["results"]["chosen"]["top1_mean"] == 78.5
        assert config["results"]["gain"]["low"] == 1.5

    def test_the_default_on_request(self, verdict, tmp_path):
        models.write(verdict, tmp_path / "out", study="x", which="default")
        config = json.loads((tmp_path / "out/config.json").read_text("utf-8"))["nbtl_search"]
        expected = source_of(verdict, candidate=0, seed=101) / "about.json"
        assert config["weights_digest"] == json.loads(expected.read_text())["weights_digest"]
        assert "the default recipe of" in (tmp_path / "out/README.md").read_text("utf-8")

    def test_where_the_default_won(self, verdict, tmp_path):
        models.write(alone(verdict), tmp_path / "out", study="x")
        card = (tmp_path / "out/README.md").read_text("utf-8")
        assert "the winning recipe of" in card
        assert "gain over the default" not in card

    def test_seed_ensemble(self, verdict, tmp_path):
        done = models.write(verdict, tmp_path / "out", study="x", seed_ensemble=True)
        assert done.members == ("seed-1", "seed-2", "seed-3", "seed-4")
        listed = json.loads((tmp_path / "out/ensemble.json").read_text("utf-8"))["members"]
        assert [m["seed"] for m in listed] == [101, 102, 103, 104]
        for member in listed:
            loaded = timm.create_model(
                f"local-dir:{tmp_path / 'out' / member['folder']}", pretrained=True
            )
            source = source_of(verdict, candidate=7, seed=member["seed"])
            stored = safetensors.torch.load_file(source / "model.safetensors")
            assert torch.equal(loaded.state_dict()["fc.weight"], stored["fc.weight"])


class TestCard:
    def test_its_front_matter_is_what_the_hub_reads(self, exported):
        data: Any = ModelCard((exported / "README.md").read_text("utf-8")).data
        assert data.license == "other"
        assert data.library_name == "timm"
        assert data.pipeline_tag == "image-classification"
        (result,) = data.eval_results
        assert (result.metric_type, result.metric_value) == ("accuracy", 78.5)
        assert result.dataset_name == "pets *1*"

    def test_it_says_what_was_found(self, exported):
        card = (exported / "README.md").read_text("utf-8")
        assert "78.50 ± 1.29 %" in card
        assert "+9.25 points, 95% confidence interval +1.50 to +17.00" in card
        assert "82.00 %" in card
        assert "not the run that was best on the test images" in card
        assert "To be filled in" in card

    def test_names_break_nothing(self, exported):
        card = (exported / "README.md").read_text("utf-8")
        assert "<script>" not in card
        assert "&lt;script&gt;grün&lt;/script&gt;" in card
        assert r"pets \*1\*" in card
        table = [line for line in card.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in table} == {6}

    def test_no_folder_of_the_user_is_passed_on(self, exported):
        for file in ("README.md", "config.json"):
            text = (exported / file).read_text("utf-8")
            assert "secret-place" not in text
            assert HOST not in text
        config = json.loads((exported / "config.json").read_text("utf-8"))
        assert config["nbtl_search"]["recipe"]["data"]["dataset"] == "pets"

    def test_without_test_images(self, verdict, tmp_path):
        entries = tuple(
            entry.replace(
                single=entry.single.replace(n=0, mean=None, std=None),
                ten_crop=entry.ten_crop.replace(n=0, mean=None, std=None),
                ensemble_top1=None,
            )
            for entry in verdict.entries
        )
        runs = tuple(run.replace(test=None) for run in verdict.runs)
        bare = verdict.replace(entries=entries, runs=runs, gain=None, ten_crop_gain=None)
        models.write(bare, tmp_path / "out", study="x")
        card = (tmp_path / "out/README.md").read_text("utf-8")
        assert "no test images" in card
        assert "model-index" not in card


class TestRefusals:
    def test_weights_on_another_host(self, verdict, tmp_path):
        elsewhere = broken_run(verdict, folder="/nowhere/9")
        with pytest.raises(WeightsError, match=rf"'/nowhere/9'.*{HOST}"):
            models.write(elsewhere, tmp_path / "a/out", study="x")
        assert list(tmp_path.iterdir()) == []

    def test_weights_of_another_digest(self, verdict, tmp_path):
        with pytest.raises(WeightsError, match=r"sha256 .*dead.*another one"):
            models.write(broken_run(verdict, digest="dead" * 16), tmp_path / "a/out", study="x")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("force", [False, True])
    def test_a_folder_that_is_not_ours_is_never_replaced(self, verdict, tmp_path, force):
        (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
        with pytest.raises(WeightsError, match="no export made"):
            models.write(verdict, tmp_path, study="x", force=force)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    def test_a_file_in_its_place(self, verdict, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(WeightsError, match="a file is there"):
            models.write(verdict, tmp_path / "out", study="x", force=True)

    @pytest.mark.parametrize("seed_ensemble", [False, True])
    def test_an_earlier_export_is_replaced_on_request_only(self, verdict, tmp_path, seed_ensemble):
        models.write(verdict, tmp_path / "out", study="x", seed_ensemble=seed_ensemble)
        with pytest.raises(WeightsError, match="--force"):
            models.write(verdict, tmp_path / "out", study="x")
        models.write(verdict, tmp_path / "out", study="y", force=True)
        files = {path.name for path in (tmp_path / "out").iterdir()}
        assert files == {"config.json", "model.safetensors", "README.md"}
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_an_empty_folder_is_taken(self, verdict, tmp_path):
        (tmp_path / "out").mkdir()
        models.write(verdict, tmp_path / "out", study="x")
        assert (tmp_path / "out/config.json").is_file()


class TestInterruption:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
    @pytest.mark.parametrize("there", [False, True])
    def test_it_leaves_what_was_there(self, verdict, tmp_path, monkeypatch, error, there):
        if there:
            models.write(verdict, tmp_path / "out", study="before")
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

        def stop(*_arguments, **_settings):
            raise error

        monkeypatch.setattr(export_module, "write_card", stop)
        with pytest.raises((KeyboardInterrupt, WeightsError)):
            models.write(verdict, tmp_path / "out", study="x", force=there)
        after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        assert after == before
        assert [p.name for p in tmp_path.iterdir()] == (["out"] if there else [])

    def test_what_a_killed_one_left_goes_after_a_day(self, tmp_path):
        old, new = tmp_path / ".out-tmp-1", tmp_path / ".out-tmp-2"
        for folder in (old, new):
            folder.mkdir()
        os.utime(old, (0, 0))
        with atomic.whole_folder(tmp_path / "out", force=False):
            pass
        assert {path.name for path in tmp_path.iterdir()} == {"out", ".out-tmp-2"}
