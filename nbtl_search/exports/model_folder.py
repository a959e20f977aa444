"""What lies in an exported folder: timm's local-dir layout, and how its own folders are known."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Never

from nbtl_search.errors import WeightsError

CONFIG = "config.json"
ENSEMBLE = "ensemble.json"
WEIGHTS = "model.safetensors"
MARKER = "nbtl_search"


def check_free(folder: Path, *, force: bool) -> None:
    """Check that an export may go there.

    Raises:
        WeightsError: there is something, and it is not an earlier export that `force` replaces.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        _refuse("the output is a folder", folder, "a file is there", "choose another name")
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
