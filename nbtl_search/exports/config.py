"""The config.json of an exported folder: timm's layout, and our own block beside it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import Any, Final

import timm
import torch
from torch import Tensor

from nbtl_search.errors import WeightsError
from nbtl_search.exports.exported import MARKER
from nbtl_search.exports.story import Member, Story
from nbtl_search.spec import Recipe
from nbtl_search.transfer.kept_architecture import config_entries

FORMAT: Final = 1


def config_of(
    about: Mapping[str, Any], state: Mapping[str, Tensor], *, story: Story, member: Member
) -> dict[str, Any]:
    """Return config.json; with a kept source classifier its architecture is not one of timm's.

    Args:
        about: the run's about.json.
        state: its weights.
        story: how the model came about.
        member: the run.

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
            "study": story.study,
            **asdict(member),
            "results": asdict(story),
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
