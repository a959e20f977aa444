"""ONNX file of a network, compared with torch on the same images."""

import importlib
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbtl_search.errors import WeightsError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Largest difference of a logit allowed, over the largest logit.
TOLERANCE = 1e-4


def require_onnx() -> None:
    """Check that the optional packages are there.

    Raises:
        WeightsError: one is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        message = (
            f"--onnx needs the packages {', '.join(PACKAGES)}, got no {', '.join(missing)}; "
            "run: pip install 'nbtl-search[onnx]'"
        )
        raise WeightsError(message)


def write_onnx(model: nn.Module, path: Path, *, image_px: int) -> float:
    """Write `images` (batch, 3, px, px) -> `logits` for any batch size, in float32.

    Returns:
        The largest difference from torch on random images, over the largest logit.

    Raises:
        WeightsError: the network cannot be exported, or the file computes something else.
    """
    model = model.to("cpu").eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((2, 3, image_px, image_px), generator=generator) * 4 - 2
    try:
        with warnings.catch_warnings(), torch.inference_mode(mode=False):
            warnings.simplefilter("ignore")  # the exporter's are about its own code
            torch.onnx.export(
                model,
                (images,),
                path,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        # The exporter raises classes of three libraries; the user can only do without.
        reason = next(iter(str(error).splitlines()), "")[:200]
        message = (
            f"the network must be one that torch exports to ONNX, got {type(error).__name__}: "
            f"{reason}; export without --onnx"
        )
        raise WeightsError(message) from error
    more = torch.rand((3, 3, image_px, image_px), generator=generator) * 4 - 2
    difference = max(_difference(model, path, batch) for batch in (images, more, more[:1]))
    if not difference <= TOLERANCE:
        message = (
            f"ONNX must agree with torch to {TOLERANCE:g} of the largest logit, got "
            f"{difference:.2g}; export without --onnx, or with another version of torch"
        )
        raise WeightsError(message)
    return difference


def _difference(model: nn.Module, path: Path, images: Float[Tensor, "batch 3 px px"]) -> float:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images).numpy().astype(np.float64)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    if logits.shape != expected.shape:
        return float("inf")
    scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(logits - expected).max() / scale)
