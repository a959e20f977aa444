"""The config.json of an exported folder: timm's layout, and our own block beside it.

Folders that timm loads: weights of final runs, with config.json, a model card and ONNX.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final, Never

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from nbtl_search.errors import WeightsError
from nbtl_search.exports.card import ModelCardData, write_card
from nbtl_search.exports.model_folder import (
    CONFIG,
    ENSEMBLE,
    MARKER,
    WEIGHTS,
    check_free,
)
from nbtl_search.exports.onnx import require_onnx, write_onnx
from nbtl_search.files.atomic import whole_folder
from nbtl_search.network.device import seeded
from nbtl_search.network.weights import UNREADABLE
from nbtl_search.spec import Recipe
from nbtl_search.spec.verdict import Entry, FinalRun, FinalWeights
from nbtl_search.transfer.kept_architecture import config_entries

FORMAT: Final = 1


def config_of(
    about: Mapping[str, Any], state: Mapping[str, Tensor], *, data: ModelCardData, run: FinalRun
) -> dict[str, Any]:
    """Return config.json; with a kept source classifier its architecture is not one of timm's.

    Args:
        about: the run's about.json.
        state: its weights.
        data: how the model came about.
        run: the run.

    Raises:
        WeightsError: timm has no model of this name, or the weights are not those of the recipe.
    """
    name = str(about["model"])
    if not timm.is_model(name):
        message = f"the model of a final run is one of timm's, got {name!r}; use the timm it had"
        raise WeightsError(message)
    kept, head = config_entries(name, state), Recipe.parse(about["recipe"]).dials.source_head
    if bool(kept) != (head == "keep"):
        message = (
            f"weights with new layers on top where source_head == 'keep', got {head!r} and weights "
            f"{'with' if kept else 'without'} them; finalise the study again"
        )
        raise WeightsError(message)
    with torch.device("meta"):
        skeleton: Any = timm.create_model(name)
    labels = list(about["classes"])
    plain = {
        "architecture": name.partition(".")[0],
        "num_classes": len(labels),
        "num_features": int(skeleton.num_features),
        "label_names": labels,
        "pretrained_cfg": _pretrained_cfg(name, about["image_format"], n_classes=len(labels)),
        MARKER: {
            "format": FORMAT,
            "study": data.study,
            **_member(run),
            "results": _results(data),
            "recipe": _without_folders(about["recipe"]),
            "weights_digest": about["weights_digest"],
            "source_weights_digest": about["source_weights_digest"],
            "pretrained_licence": licence_of(name),
            "versions": about["versions"],
            "device": about.get("device"),
            "precision": about.get("precision"),
        },
    }
    return plain | kept


def _results(data: ModelCardData) -> dict[str, Any]:
    """Return the verdict under the keys that config.json has had from its first format."""
    verdict, gain = data.verdict, data.verdict.gain
    return {
        "study": data.study,
        "final_study": verdict.study,
        "chosen": _outcome(data.chosen),
        "is_default": data.is_default,
        "is_winner": data.is_winner,
        "default": None if data.default is None else _outcome(data.default),
        "gain": None
        if gain is None
        else {
            "n_seeds": gain.n,
            "mean": gain.mean,
            "low": gain.low,
            "high": gain.high,
            "confidence": gain.confidence,
        },
        "n_test_images": data.n_test_images,
        "n_readings": len(verdict.readings),
        "n_candidates": len(verdict.contenders),
        "n_confirm_seeds": verdict.n_confirm_seeds,
        "tied_with_winner": data.tied_with_winner,
    }


def _outcome(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "n_seeds": entry.single.n,
        "top1_mean": entry.single.mean,
        "top1_std": entry.single.std,
        "ten_crop_mean": entry.ten_crop.mean,
        "ten_crop_std": entry.ten_crop.std,
        "ensemble_top1": entry.ensemble_top1,
    }


def _member(run: FinalRun) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "test_top1": run.test.top1 if run.test else None,
        "test_ten_crop_top1": run.test.ten_crop_top1 if run.test else None,
    }


def licence_of(model_name: str) -> str:
    """Return what timm states of the licence of a model's weights; 'unknown' if nothing."""
    known = timm.get_pretrained_cfg(model_name)
    return str(known.license) if known is not None and known.license else "unknown"


def _pretrained_cfg(name: str, form: Mapping[str, Any], *, n_classes: int) -> dict[str, Any]:
    known = timm.get_pretrained_cfg(name)
    traits = known.to_dict() if known is not None else {}
    size_px = int(form["image_px"])
    return {
        "custom_load": False,
        "input_size": [3, size_px, size_px],
        "fixed_input_size": bool(traits.get("fixed_input_size", False)),
        "interpolation": form["interpolation"],
        "crop_pct": form["crop_pct"],
        "crop_mode": "center",
        "mean": list(form["mean"]),
        "std": list(form["std"]),
        "num_classes": n_classes,
        "pool_size": None,
        "first_conv": traits.get("first_conv"),
        "classifier": traits.get("classifier"),
        "license": "other",
    }


def _without_folders(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Cut paths to their last part: an exported model is passed on, the user's folders are not."""
    plain: dict[str, Any] = json.loads(json.dumps(recipe))
    for table, key in (("data", "dataset"), ("data", "root"), ("model", "weights")):
        value = plain.get(table, {}).get(key)
        if isinstance(value, str):
            plain[table][key] = PurePath(value).name or value
    return plain


ABOUT = "about.json"
ABOUT_KEYS = frozenset(
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
        about = dict(json.loads((folder / ABOUT).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        _refuse(f"{ABOUT} is a JSON object", folder / ABOUT, error)
    if missing := sorted(ABOUT_KEYS - about.keys()):
        _refuse(f"{ABOUT} has {', '.join(missing)}", folder / ABOUT)
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
        MARKER: {"format": FORMAT, "results": _results(data), "study": data.study},
        "combine": "mean softmax",
        "members": [
            {"folder": name, **_member(run)} for name, run in zip(names, runs, strict=True)
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
        with seeded(0):
            model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (*UNREADABLE, AssertionError) as error:
        _refuse("weights fit their architecture", folder / WEIGHTS, error)
    return model.eval()


def _copy_weights(source: FinalWeights, target: Path) -> None:
    file = Path(source.folder, WEIGHTS)
    shutil.copyfile(file, target)
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
