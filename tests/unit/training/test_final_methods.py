"""What final runs with methods leave: folders that export as they are, and what timm makes of it.

From training to the exported folder, with nothing made by hand in between.
"""

import json

import pytest
import safetensors.torch
import timm
import torch

from nbtl_search.errors import WeightsError
from nbtl_search.network.weights import read_weights
from nbtl_search.spec import ModelSettings
from nbtl_search.spec.verdict import FinalWeights
from nbtl_search.training.final_run import ScoredImages, keep, score_test
from nbtl_search.training.run import Run, train
from nbtl_search.transfer import stochnorm
from nbtl_search.workspace import models
from nbtl_search.workspace.models import predict
from tests.exportable import HOST, make_verdict

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def end_run(tiny_prepared, tiny_home, tiny_recipe):
    """Train an epoch with these dials and methods on; the usual ones elsewhere."""

    def end(dials=None, methods=None):
        recipe = tiny_recipe(
            data={"train_on": "train+val"},
            train={"epochs": 1, "batch_size": 8},
            dials={"reinit_layers": 1} | (dials or {}),
            methods=methods or {},
        )
        run = Run(recipe, prepared=tiny_prepared, home=tiny_home)
        list(train(run))
        return run

    return end


def export(run, predictions, tmp_path):
    """Keep a run and export it, as `finalize` and `export` do."""
    digest = keep(run, tmp_path / "final", predictions)
    verdict = make_verdict(tmp_path / "others")
    first = next(r for r in verdict.runs if (r.candidate, r.seed) == (7, 101))
    weights = FinalWeights(host=HOST, folder=str(tmp_path / "final"), digest=digest)
    verdict = verdict.replace(runs=(first.replace(weights=weights),))
    models.write(verdict, tmp_path / "out", study="x")
    return tmp_path / "out"


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_a_kept_source_classifier_from_training_to_predictions(
    end_run, tiny_home, tiny_folder, tmp_path, hidden
):
    run = end_run({"source_head": "keep"}, {"source_hidden": hidden})
    *_, result = score_test(run, home=tiny_home)
    assert isinstance(result, ScoredImages)
    folder = export(run, result.predictions, tmp_path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["model_args"] == {
        "backbone": "test_resnet", "n_source": 11, "hidden": list(hidden),
    }  # fmt: skip
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES), run.network.model.eval()(IMAGES))
    found = predict(folder, [tiny_folder], device="cpu")
    assert found.confusion is not None
    assert found.confusion.n_images == 42
    for place in (folder, folder / "model.safetensors"):
        settings = ModelSettings(name="test_resnet", weights=str(place))
        with pytest.raises(WeightsError, match="a kept source classifier in it"):
            read_weights(settings, home=tiny_home)


def test_stochastic_normalisation_is_kept_and_exported_as_batch_norm(end_run, tmp_path):
    run = end_run({"stochnorm_p": 0.5, "frozen_layers": 1})
    network = run.network.model
    kinds = {type(module) for module in network.modules()}
    assert kinds & set(stochnorm.PLAIN)
    stochastic = keep(run, tmp_path / "stochastic", None)
    stochnorm.restore(network)
    assert keep(run, tmp_path / "plain", None) == stochastic
    model = timm.create_model(f"local-dir:{export(run, None, tmp_path)}", pretrained=True).eval()
    assert not {type(module) for module in model.modules()} & set(stochnorm.PLAIN)
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES), network.eval()(IMAGES))
    stored = safetensors.torch.load_file(tmp_path / "stochastic" / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
