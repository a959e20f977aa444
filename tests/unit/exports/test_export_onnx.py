"""Exported ONNX files, run by onnxruntime alone."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn

from nbtl_search.errors import WeightsError
from nbtl_search.exports import export
from nbtl_search.workspace import models
from tests.exportable import make_verdict

RUN = """
import sys, numpy as np, onnxruntime
folder, inputs, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
np.save(outputs, session.run(["logits"], {"images": np.load(inputs)})[0])
assert "torch" not in sys.modules and "nbtl_search" not in sys.modules
"""


@pytest.mark.slow
def test_it_agrees_with_timm_for_any_batch(tmp_path):
    verdict = make_verdict(tmp_path / "runs")
    done = models.write(verdict, tmp_path / "out", study="x", onnx=True)
    assert done.onnx_difference is not None
    assert done.onnx_difference <= 1e-4
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    for n in (1, 7):
        batch = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(n))
        np.save(tmp_path / "in.npy", batch.numpy())
        run = subprocess.run(
            [sys.executable, "-c", RUN, tmp_path / "out", tmp_path / "in.npy", tmp_path / "o.npy"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        with torch.inference_mode():
            expected = model(batch).numpy()
        assert np.abs(np.load(tmp_path / "o.npy") - expected).max() <= 1e-4
    assert "model.onnx" in (tmp_path / "out/README.md").read_text("utf-8")


def test_without_the_packages_it_says_what_to_install(tmp_path, monkeypatch):
    verdict = make_verdict(tmp_path / "runs")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(WeightsError, match=r"no onnxruntime.*pip install 'nbtl-search\[onnx\]'"):
        models.write(verdict, tmp_path / "out", study="x", onnx=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_refused(tmp_path):
    class Unsteady(nn.Module):
        """Give other logits once it has been exported."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images):
            logits = self.head(images.mean((2, 3)))
            return logits if torch.compiler.is_compiling() else logits + 0.01

    with pytest.raises(WeightsError, match=r"must agree with torch to 0\.0001"):
        export.write_onnx(Unsteady(), tmp_path / "m.onnx", image_px=8)


def test_a_network_that_cannot_be_exported_is_one_line(tmp_path):
    class Python(nn.Module):
        """Decide by a value, which no graph can."""

        def forward(self, images):
            return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))

    with pytest.raises(WeightsError, match="export without --onnx") as caught:
        export.write_onnx(Python(), tmp_path / "m.onnx", image_px=8)
    assert "\n" not in str(caught.value)
