"""Model folders: timm's local-dir layout, and how a folder is known to be ours."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Final, Never

import timm
import torch
from torch import Tensor

from nbtl_search.errors import WeightsError
from nbtl_search.exports.card import ModelCardData
from nbtl_search.spec import Recipe
from nbtl_search.spec.verdict import Entry, FinalRun
from nbtl_search.transfer.kept_architecture import config_entries

CONFIG: Final = "config.json"
ENSEMBLE: Final = "ensemble.json"
WEIGHTS: Final = "model.safetensors"
MARKER: Final = "nbtl_search"


# Of our block; whoever changes the meaning of a key counts it up.
FORMAT: Final = 1


def check_free(folder: Path, *, force: bool) -> None:
    """Check that an export may go there.

    Raises:
        WeightsError: there is something, and it is not an earlier export that `force` replaces.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        _refuse("the output is a folder", folder, "a file is there", "choose another name")
    # A folder of something else is never replaced, `force` or not: its name may be mistyped.
    ours = any(MARKER in _object(folder / name) for name in (CONFIG, ENSEMBLE))
    if not ours:
        _refuse(
            "the output is a new or empty folder",
            folder,
            "it holds something that no export made",
            "choose another name",
        )
    if not force:
        _refuse(
            "the output is a new or empty folder",
            folder,
            "it holds an earlier export",
            "choose another name, or add --force to replace it",
        )


def members_of(folder: Path) -> list[Path]:
    """Return the folders of a model: its own, or those that ensemble.json lists.

    Raises:
        WeightsError: there is no such folder, or no model in it.
    """
    if not folder.is_dir():
        _refuse("a model is a folder", folder, "no such folder", "pass what `export` wrote")
    if not (folder / ENSEMBLE).is_file():
        return [folder]
    content = read_object(folder / ENSEMBLE)
    try:
        names = [str(member["folder"]) for member in content["members"]]
    except (KeyError, TypeError, IndexError) as error:
        _broken(folder / ENSEMBLE, "it lists no members", error)
    # The file may come from anybody: it names subfolders, and no path leads out of the model's.
    if not names or any(name != Path(name).name or name == ".." for name in names):
        _broken(folder / ENSEMBLE, f"members {names}, which are no subfolders")
    return [folder / name for name in names]


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json after checking it and the weights beside it.

    Raises:
        WeightsError: a file is missing or damaged, or the weights are not those of config.json.
    """
    if not (folder / CONFIG).is_file():
        _refuse(
            f"a model folder holds {CONFIG}", folder, "no such file", "pass what `export` wrote"
        )
    config = read_object(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        rule = f"a model folder holds {WEIGHTS} (pickled weights are never loaded)"
        _refuse(rule, folder, "no such file", "convert them, or export again")
    own = config.get(MARKER)
    expected = own.get("weights_digest") if isinstance(own, dict) else None
    if expected is not None:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != expected:
            reason = f"sha256 {digest[:12]}…, not {str(expected)[:12]}… as in {CONFIG}"
            _broken(weights, reason)
    return config


def labels_of(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the class names by index, from wherever timm allows them.

    Raises:
        WeightsError: there are none, or not as many as classes.
    """
    inner = config.get("pretrained_cfg", config)
    inner = inner if isinstance(inner, dict) else {}
    found = config.get("label_names", inner.get("label_names", inner.get("labels")))
    n_classes = config.get("num_classes", inner.get("num_classes"))
    if isinstance(found, dict):  # JSON's keys are texts; indices may be missing
        by_index = {str(index): name for index, name in found.items()}
        found = [by_index.get(str(i), f"class {i}") for i in range(int(n_classes or 0))]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        _broken(folder / CONFIG, "no label_names in it")
    if len(found) != n_classes:
        _broken(folder / CONFIG, f"{len(found)} label_names for {n_classes} classes")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        WeightsError: it cannot be read, or is something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        _broken(path, str(error).splitlines()[0], error)
    if not isinstance(content, dict):
        _broken(path, f"a JSON {type(content).__name__}")
    return content


def config_of(
    about: Mapping[str, Any], state: Mapping[str, Tensor], *, data: ModelCardData, run: FinalRun
) -> dict[str, Any]:
    """Return config.json; with a kept source classifier its architecture is not one of timm's.

    Args:
        about: the run's about.json.
        state: its weights.
        data: how the model came about.
        run: whose weights they are.

    Raises:
        WeightsError: timm has no model of this name, or the weights are not those of the recipe.
    """
    name = str(about["model"])
    if not timm.is_model(name):
        message = f"the model of a final run is one of timm's, got {name!r}; use the timm it had"
        raise WeightsError(message)
    # The architecture follows the weights; a recipe that says otherwise belongs to other weights.
    kept, head = config_entries(name, state), Recipe.parse(about["recipe"]).dials.source_head
    if bool(kept) != (head == "keep"):
        message = (
            f"weights with new layers on top where source_head == 'keep', got {head!r} and weights "
            f"{'with' if kept else 'without'} them; finalise the study again"
        )
        raise WeightsError(message)
    with torch.device("meta"):  # only its traits are asked for: no memory is taken
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
            **member_of(run),
            "results": results_of(data),
            "recipe": _without_folders(about["recipe"]),
            **_averaged(about),
            "weights_digest": about["weights_digest"],
            "source_weights_digest": about["source_weights_digest"],
            "pretrained_licence": licence_of(name),
            "versions": about["versions"],
            "device": about.get("device"),
            "precision": about.get("precision"),
        },
    }
    return plain | kept


def results_of(data: ModelCardData) -> dict[str, Any]:
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
        "unmade_average_of": list(verdict.unmade),
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


def member_of(run: FinalRun) -> dict[str, Any]:
    """Return what config.json and ensemble.json say of one run, under their own keys."""
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


def _averaged(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipes whose weights were averaged, where they were."""
    recipes = about.get("averaged")
    return {} if recipes is None else {"averaged": [_without_folders(each) for each in recipes]}


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path) if path.is_file() else {}
    except WeightsError:
        return {}


def _broken(path: Path, got: str, cause: BaseException | None = None) -> Never:
    _refuse("a model folder is as `export` wrote it", path, got, "export it again", cause)


def _refuse(
    rule: str, place: Path, got: str, remedy: str, cause: BaseException | None = None
) -> Never:
    message = f"{rule}, got {str(place)!r}: {got}; {remedy}"
    raise WeightsError(message) from cause
