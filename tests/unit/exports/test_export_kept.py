"""Exports with a kept source classifier, by timm with us and without us, by predict and as ONNX."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.special import softmax

from nbtl_search.cli.predictions import predict_command
from nbtl_search.errors import WeightsError
from nbtl_search.exports.predict import open_classifier
from nbtl_search.transfer import stochnorm
from nbtl_search.transfer.source_classifier import rebuilt, shape_of
from nbtl_search.workspace import models
from nbtl_search.workspace.models import predict
from tests.exportable import CLASSES, MODEL, N_SOURCE, make_verdict

# What the model card says, in a process that has imported nothing else of us.
LOAD = """
import sys, timm, torch
import nbtl_search.transfer.kept_architecture
folder, inputs, outputs = sys.argv[1:]
model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
with torch.inference_mode():
    torch.save(model(torch.load(inputs, weights_only=True)), outputs)
assert "optuna" not in sys.modules
"""
ALONE = """
import sys, timm
timm.create_model("local-dir:" + sys.argv[1], pretrained=True)
"""
RUN_ONNX = """
import sys, numpy as np, onnxruntime
folder, inputs, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
np.save(outputs, session.run(["logits"], {"images": np.load(inputs)})[0])
assert "torch" not in sys.modules and "nbtl_search" not in sys.modules
"""
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=[(), (8, 5)], ids=["no-hidden", "hidden"])
def hidden(request):
    return request.param


@pytest.fixture(scope="module")
def verdict(tmp_path_factory, hidden):
    return make_verdict(tmp_path_factory.mktemp("finals"), hidden=hidden)


@pytest.fixture(scope="module")
def exported(verdict, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "kept"
    models.write(verdict, folder, study="pets")
    return folder


def weights_of(verdict, *, seed):
    (run,) = [r for r in verdict.runs if (r.candidate, r.seed) == (7, seed)]
    return safetensors.torch.load_file(Path(run.weights.folder) / "model.safetensors")


def logits_of(state, images=IMAGES):
    """Return what the run's own network gives, built without any export."""
    with torch.inference_mode():
        return rebuilt(MODEL, state).eval()(images)


def python(script, *arguments, cwd):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


class TestTimm:
    def test_with_our_module_it_gives_equal_logits(self, verdict, exported, tmp_path):
        torch.save(IMAGES, tmp_path / "in.pt")
        root = Path(__file__).parents[3]
        done = python(LOAD, exported, tmp_path / "in.pt", tmp_path / "out.pt", cwd=root)
        assert done.returncode == 0, done.stderr
        logits = torch.load(tmp_path / "out.pt", weights_only=True)
        assert logits.shape == (4, len(CLASSES))
        torch.testing.assert_close(logits, logits_of(weights_of(verdict, seed=101)))

    def test_alone_it_says_that_it_does_not_know_the_architecture(self, exported, tmp_path):
        done = python(ALONE, exported, cwd=tmp_path)
        assert done.returncode != 0
        last = done.stderr.strip().splitlines()[-1]
        assert "Unknown model" in last
        assert "kept_source_classifier" in last

    def test_config_json_says_what_the_weights_are(self, exported, hidden):
        config = json.loads((exported / "config.json").read_text("utf-8"))
        assert config["architecture"] == "kept_source_classifier"
        assert config["model_args"] == {
            "backbone": MODEL, "n_source": N_SOURCE, "hidden": list(hidden),
        }  # fmt: skip
        assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == len(CLASSES)
        assert config["label_names"] == list(CLASSES)

    @pytest.mark.parametrize("name", ["test_vit", "test_efficientnet.r160_in1k"])
    def test_other_networks(self, name, tmp_path):
        verdict = make_verdict(tmp_path / "runs", model=name, image_px=160, hidden=(4,))
        models.write(verdict, tmp_path / "out", study="x")
        loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).state_dict()
        stored = weights_of(verdict, seed=101)
        assert loaded.keys() == stored.keys()
        assert all(torch.equal(loaded[key], stored[key]) for key in stored)


class TestArchitecture:
    def test_the_settings_of_the_backbone_reach_it(self, exported):
        model = timm.create_model(f"local-dir:{exported}", pretrained=True, drop_rate=0.5)
        assert getattr(model, "drop_rate", None) == 0.5

    def test_without_weights_any_number_of_classes_can_be_had(self, exported):
        model = timm.create_model(f"local-dir:{exported}", num_classes=7).eval()
        assert model(IMAGES).shape == (4, 7)

    def test_its_weights_have_one_number_of_classes(self, exported):
        for n_classes in (0, 7):
            with pytest.raises(WeightsError, match=rf"num_classes == 3.*got {n_classes}") as caught:
                timm.create_model(f"local-dir:{exported}", pretrained=True, num_classes=n_classes)
            assert "\n" not in str(caught.value)

    def test_its_name_alone_is_no_model(self):
        with pytest.raises(WeightsError, match="got its name alone"):
            timm.create_model("kept_source_classifier")

    @pytest.mark.parametrize("backbone", ["no_such_net", "hf-hub:x/y", "kept_source_classifier"])
    def test_what_its_config_names_must_be_one_of_timms(self, exported, tmp_path, backbone):
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((exported / name).read_bytes())
        config = json.loads((tmp_path / "config.json").read_text("utf-8"))
        config["model_args"]["backbone"] = backbone
        (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
        with pytest.raises(WeightsError, match=f"timm model, got {backbone!r}") as caught:
            open_classifier(tmp_path, device="cpu")
        assert "\n" not in str(caught.value)


class TestUse:
    def test_predict_gives_the_networks_probabilities(self, verdict, exported, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photo.png")
        (found,) = predict(exported, [tmp_path / "photo.png"], device="cpu").images
        model = timm.create_model(f"local-dir:{exported}", pretrained=True)
        config = timm.data.resolve_model_data_config(model)
        assert list(config["mean"]) == [0.4, 0.5, 0.6]
        transform = timm.data.create_transform(**config, is_training=False)
        with Image.open(tmp_path / "photo.png") as photo:
            logits = logits_of(weights_of(verdict, seed=101), transform(photo)[None])
        assert found.probabilities == pytest.approx(softmax(logits.double().numpy()[0]), abs=1e-6)

    def test_the_command_predicts_alike(self, exported, tmp_path):
        Image.new("RGB", (40, 40), "red").save(tmp_path / "photo.png")
        (found,) = predict(exported, [tmp_path / "photo.png"], device="cpu").images
        command = [str(exported), str(tmp_path / "photo.png"), "--device", "cpu", "--json"]
        done = CliRunner().invoke(predict_command, command)
        assert done.exit_code == 0, done.output
        first = json.loads(done.stdout)[0]["predictions"][0]
        label, probability = found.best(1)[0]
        assert first == {"label": CLASSES[label], "probability": pytest.approx(probability)}

    def test_a_seed_ensemble_is_averaged(self, verdict, tmp_path):
        models.write(verdict, tmp_path / "out", study="x", seed_ensemble=True)
        classifier = open_classifier(tmp_path / "out", device="cpu")
        for model, seed in zip(classifier.models, (101, 102, 103, 104), strict=True):
            with torch.inference_mode():
                torch.testing.assert_close(model(IMAGES), logits_of(weights_of(verdict, seed=seed)))
        card = (tmp_path / "out/README.md").read_text("utf-8")
        assert "import nbtl_search.transfer.kept_architecture" in card

    @pytest.mark.slow
    def test_onnx_needs_neither_us_nor_torch(self, verdict, tmp_path):
        done = models.write(verdict, tmp_path / "out", study="x", onnx=True)
        assert done.onnx_difference is not None
        assert done.onnx_difference <= 1e-4
        for n in (1, 4):
            np.save(tmp_path / "in.npy", IMAGES[:n].numpy())
            paths = tmp_path / "out", tmp_path / "in.npy", tmp_path / "o.npy"
            run = python(RUN_ONNX, *paths, cwd=tmp_path)
            assert run.returncode == 0, run.stderr
            expected = logits_of(weights_of(verdict, seed=101), IMAGES[:n]).numpy()
            assert np.abs(np.load(tmp_path / "o.npy") - expected).max() <= 1e-4


class TestCard:
    def test_it_says_how_either_kind_is_loaded(self, exported, tmp_path):
        card = (exported / "README.md").read_text("utf-8")
        assert "import nbtl_search.transfer.kept_architecture" in card
        assert "refuses it as an unknown model elsewhere" in card
        models.write(make_verdict(tmp_path / "runs"), tmp_path / "out", study="x")
        plain = (tmp_path / "out/README.md").read_text("utf-8")
        assert "`timm` alone loads it" in plain
        assert "kept_architecture" not in plain
        assert "Methods beyond" not in plain

    def test_its_python_runs_as_it_stands(self, exported, tmp_path):
        card = (exported / "README.md").read_text("utf-8")
        code = card.split("```python\n")[1].split("```")[0].replace("THIS_FOLDER", str(exported))
        Image.new("RGB", (40, 40), "red").save(tmp_path / "photo.jpg")
        source = code.replace("photo.jpg", str(tmp_path / "photo.jpg"))
        done = python(source, cwd=Path(__file__).parents[3])
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(CLASSES)

    def test_methods_stand_beside_the_recipe(self, tmp_path, hidden):
        dials = {"frozen_layers": 2, "stochnorm_p": 0.5, "bss": 0.001}
        verdict = make_verdict(tmp_path / "runs", hidden=hidden, dials=dials)
        models.write(verdict, tmp_path / "out", study="x")
        card = (tmp_path / "out/README.md").read_text("utf-8")
        recipe = card.split("## Recipe")[1].split("## Classes")[0]
        listed = [line for line in recipe.splitlines() if line.startswith("* ")]
        assert len(listed) == 4
        assert "The new layers on top of the kept source classifier started fresh" in recipe
        assert ("8 and 5 units" in recipe) is bool(hidden)
        assert "the first 2 blocks did not learn" in recipe


def test_weights_that_the_recipe_does_not_describe_are_refused(tmp_path):
    verdict = make_verdict(tmp_path / "runs", hidden=(), dials={"source_head": "replace"})
    with pytest.raises(WeightsError, match="got 'replace' and weights with them"):
        models.write(verdict, tmp_path / "out", study="x")
    assert not (tmp_path / "out").exists()


def test_stochastic_normalisation_leaves_the_bytes_of_batch_norm():
    torch.manual_seed(0)
    model = timm.create_model(MODEL, num_classes=3)
    model.train()(torch.randn(4, 3, 32, 32))
    before = safetensors.torch.save(model.state_dict(), metadata={"format": "pt"})
    expected = model.eval()(IMAGES)
    stochnorm.convert(model, p=0.5)
    assert any(type(module).__name__.startswith("Stochastic") for module in model.modules())
    assert safetensors.torch.save(model.state_dict(), metadata={"format": "pt"}) == before
    assert torch.equal(model.eval()(IMAGES), expected)
    assert shape_of(model.state_dict()) is None
