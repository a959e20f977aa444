"""Export: the weights of final runs as a folder that timm loads, with a model card and ONNX.

The folder is written beside its place and renamed: it is there whole or not at all. The ONNX file
is compared with torch on the same images before it is kept.
"""

import hashlib
import importlib
import importlib.util
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final, Never

import numpy as np
import safetensors.torch
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbtl_search.errors import WeightsError
from nbtl_search.exports.card import ModelCardData, write_card
from nbtl_search.exports.model_folder import (
    CONFIG,
    ENSEMBLE,
    FORMAT,
    MARKER,
    WEIGHTS,
    check_free,
    config_of,
    licence_of,
    member_of,
    results_of,
)
from nbtl_search.files.atomic import whole_folder
from nbtl_search.network.device import seeded
from nbtl_search.network.weights import UNREADABLE
from nbtl_search.spec.verdict import FinalRun, FinalWeights
from nbtl_search.training.final_run import ABOUT_FILE

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


# Without these no folder can be made; device and precision may be missing.
ABOUT_KEYS: Final = frozenset(
    {"model", "classes", "image_format", "recipe"}
    | {"weights_digest", "source_weights_digest", "versions"}
)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written."""

    folder: Path
    members: tuple[str, ...]
    """Its subfolders of a seed ensemble; ('.',) for a single model."""
    n_classes: int
    onnx_difference: float | None
    """Largest difference of a logit between ONNX and torch, over the logits' scale."""


def export(
    runs: Sequence[FinalRun],
    output: Path,
    *,
    data: ModelCardData,
    onnx: bool = False,
    force: bool = False,
) -> Export:
    """Write one run's weights, or a seed ensemble, as a folder that is there whole or not at all.

    Args:
        runs: one run, or several, which become `seed-1`, `seed-2`, …
        output: the folder; it must not exist, or be empty.
        data: how the model came about.
        onnx: write model.onnx as well, and compare it with torch.
        force: replace a folder that an export made.

    Raises:
        WeightsError: weights that are nowhere, not here, or not those of the ledger; packages for
            ONNX are missing; ONNX and torch differ; or `output` is taken.
    """
    sources = _weights_of(runs, data)
    output = output.expanduser().resolve()
    check_free(output, force=force)
    if onnx:
        require_onnx()
    # What can be refused is refused before anything is written.
    abouts = [_read_about(source) for source in sources]
    members = tuple(f"seed-{i + 1}" for i in range(len(sources))) if len(sources) > 1 else (".",)
    differences = []
    with _writing(output), whole_folder(output, force=force) as temporary:
        for run, source, about, name in zip(runs, sources, abouts, members, strict=True):
            folder = temporary / name
            folder.mkdir(exist_ok=True)
            _copy_weights(source, folder / WEIGHTS)
            differences += _write_member(folder, run, about, data=data, onnx=onnx)
        if len(runs) > 1:
            _write_ensemble(temporary, runs, abouts, members, data=data, onnx=onnx)
    return Export(
        folder=output,
        members=members,
        n_classes=len(abouts[0]["classes"]),
        onnx_difference=max(differences, default=None),
    )


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = (
            f"{str(output)!r} must be a place that can be written, with room, got "
            f"{error.strerror or error}; choose another folder, or make room"
        )
        raise WeightsError(message) from error


def _weights_of(runs: Sequence[FinalRun], data: ModelCardData) -> list[FinalWeights]:
    found = [run.weights for run in runs if run.weights is not None]
    if not runs or len(found) < len(runs):
        message = (
            f"a run that is exported has left its weights, got none of {data.study!r}, recipe "
            f"{data.chosen.name!r}; run: nbtl-search finalize {data.study} --again "
            "'weights were lost'"
        )
        raise WeightsError(message)
    return found


def _read_about(source: FinalWeights) -> dict[str, Any]:
    """Return what a final run says of itself; also check that its weights are here."""
    folder = Path(source.folder)
    if not (folder / WEIGHTS).is_file():
        message = (
            f"the weights of a final run must be on this machine, got none in "
            f"{source.folder!r}; they were written on host {source.host!r}: export there, or "
            "copy that folder here under the same path"
        )
        raise WeightsError(message)
    try:
        about = dict(json.loads((folder / ABOUT_FILE).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        _refuse(f"{ABOUT_FILE} is a JSON object", folder / ABOUT_FILE, error)
    if missing := sorted(ABOUT_KEYS - about.keys()):
        _refuse(f"{ABOUT_FILE} has {', '.join(missing)}", folder / ABOUT_FILE)
    return about


def _write_member(
    folder: Path, run: FinalRun, about: dict[str, Any], *, data: ModelCardData, onnx: bool
) -> list[float]:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    _write_json(folder / CONFIG, config_of(about, state, data=data, run=run))
    model = loaded(folder)
    _check_equal(model, state, folder / WEIGHTS)
    size_px = int(about["image_format"]["image_px"])
    differences = [write_onnx(model, folder / "model.onnx", image_px=size_px)] if onnx else []
    card = write_card(
        data,
        runs=[run],
        about=about,
        pretrained_licence=licence_of(about["model"]),
        has_onnx=onnx,
    )
    (folder / "README.md").write_text(card, "utf-8")
    return differences


def _write_ensemble(
    folder: Path,
    runs: Sequence[FinalRun],
    abouts: Sequence[dict[str, Any]],
    names: Sequence[str],
    *,
    data: ModelCardData,
    onnx: bool,
) -> None:
    content = {
        MARKER: {"format": FORMAT, "results": results_of(data), "study": data.study},
        "combine": "mean softmax",
        "members": [
            {"folder": name, **member_of(run)} for name, run in zip(names, runs, strict=True)
        ],
    }
    _write_json(folder / ENSEMBLE, content)
    card = write_card(
        data,
        runs=runs,
        about=abouts[0],
        pretrained_licence=licence_of(abouts[0]["model"]),
        has_onnx=False,
    )
    note = "\n\nEach member has its `model.onnx`, too.\n" if onnx else ""
    (folder / "README.md").write_text(card + note, "utf-8")


def loaded(folder: Path) -> nn.Module:
    """Load an exported folder as timm does; one with a kept source classifier, too.

    Raises:
        WeightsError: timm cannot load it.
    """
    try:
        with seeded(0):  # timm draws weights before it reads ours; the caller's state stays
            model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (*UNREADABLE, AssertionError) as error:
        _refuse("weights fit their architecture", folder / WEIGHTS, error)
    return model.eval()


def _copy_weights(source: FinalWeights, target: Path) -> None:
    file = Path(source.folder, WEIGHTS)
    shutil.copyfile(file, target)
    # The copy is what others get: checked here, a file that changes meanwhile is noticed as well.
    with target.open("rb") as copy:
        digest = hashlib.file_digest(copy, "sha256").hexdigest()
    if digest != source.digest:
        message = (
            f"sha256 of {str(file)!r} == {source.digest[:12]}… as the study "
            f"has it, got {digest[:12]}…: the file is damaged or another one; fetch it again from "
            f"host {source.host!r}"
        )
        raise WeightsError(message)


def _check_equal(model: nn.Module, stored: Mapping[str, Tensor], file: Path) -> None:
    """Check that timm's loader changes no bit of what the file holds."""
    state = model.state_dict()
    differing = sorted(
        (stored.keys() ^ state.keys())
        | {name for name in stored.keys() & state.keys() if not _same(stored[name], state[name])}
    )
    if differing:
        _refuse(f"timm loads every tensor as it is (not {differing[0]!r})", file)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(f"{text}\n", "utf-8")


def _refuse(rule: str, place: PurePath, cause: BaseException | None = None) -> Never:
    reason = f": {next(iter(str(cause).splitlines()), type(cause).__name__)}" if cause else ""
    message = f"{rule}, got {str(place)!r}{reason:.300}; finalise the study again"
    raise WeightsError(message) from cause
