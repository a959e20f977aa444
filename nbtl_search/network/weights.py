"""Pre-trained weights: where they come from, what they are, and whether they fit."""

import hashlib
import importlib.resources
import json
import logging
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from nbtl_search.errors import WeightsError
from nbtl_search.files.atomic import remove_abandoned, write_durably
from nbtl_search.network.device import seeded
from nbtl_search.spec import ModelSettings
from nbtl_search.transfer.distillation import source_head
from nbtl_search.transfer.layers import classifier_parameters
from nbtl_search.transfer.source_classifier import shape_of

logger = logging.getLogger(__name__)

RANDOM = "random"
# What the two readers raise on a file that is cut, damaged or of another kind.
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)
# A training checkpoint holds the state dict under one of these.
ENVELOPES = ("state_dict", "model")
DIRECTORY_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A state dict with its origin; `digest` is 'random' where nothing is pre-trained."""

    origin: str
    digest: str
    state: Mapping[str, Tensor] = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the weights expect of an image, where their origin says it (timm's keys)."""

    @property
    def pretrained(self) -> bool:
        """Tell whether there is anything to transfer."""
        return self.digest != RANDOM


def read_weights(settings: ModelSettings, *, home: Path) -> Weights:
    """Read the weights a model's settings name; random ones only where they say so.

    Args:
        settings: `weights` is 'timm', 'shipped', 'random', a file, or a directory.
        home: below it the timm hub's downloads are cached.

    Raises:
        WeightsError: they cannot be had or read; the message says where to get them.
    """
    match settings.weights:
        case "random":
            return Weights(origin=RANDOM, digest=RANDOM, state={})
        case "timm":
            return _from_hub(settings.name, cache=home / "weights")
        case "shipped":
            return _read(shipped_file(settings.name))
        case place:
            path = Path(place).expanduser()
            return _from_directory(path, settings.name) if path.is_dir() else _read(path)


def shipped_file(model_name: str) -> Path:
    """Return the weights inside this package for a model.

    Raises:
        WeightsError: none are shipped for it.
    """
    folder = Path(str(importlib.resources.files("nbtl_search"))) / "weights"
    path = folder / f"{model_name}.safetensors"
    if not path.is_file():
        known = sorted(found.stem for found in folder.glob("*.safetensors"))
        message = (
            f"weights = 'shipped' needs a model with shipped weights ({', '.join(known) or 'none'})"
            f", got {model_name!r}; use weights = 'timm', or the path of a file"
        )
        raise WeightsError(message)
    return path


def load_weights(
    model: nn.Module, weights: Weights, *, model_name: str, classifier: bool = False
) -> None:
    """Load weights into a model of the same architecture, in place: all but the classifier.

    Args:
        model: the network.
        weights: of a network of the same architecture.
        model_name: for messages.
        classifier: load the classifier too.

    Raises:
        WeightsError: a key is missing, unexpected, or of another shape.
    """
    head = frozenset[str]() if classifier else classifier_parameters(model).keys()
    expected = {name: value for name, value in model.state_dict().items() if name not in head}
    given = {name: value for name, value in weights.state.items() if name not in head}
    # Files older than torch 0.4.1 have no batch counters; torch starts them at 0 as well.
    missing = [
        name for name in expected.keys() - given.keys() if not name.endswith("num_batches_tracked")
    ]
    unexpected = given.keys() - expected.keys()
    reshaped = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & given.keys()
        if given[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if names
    ]
    if problems:
        message = (
            f"weights must have the {len(expected)} tensors of {model_name!r}"
            f"{'' if classifier else ' besides its classifier'}, got {weights.origin} with "
            f"{'; '.join(problems)}: these are weights of another architecture; pass the matching "
            "file or model name"
        )
        raise WeightsError(message)
    # Not strict, as the classifier and batch counters may be missing; all else was compared above.
    model.load_state_dict(given, strict=False)


def source_classes(weights: Weights, model_name: str) -> int:
    """Return the number of classes that the weights' own classifier tells apart.

    Raises:
        SpecError: timm's model has no classifier that is one linear layer.
        MethodError: the weights hold no classifier.
    """
    with torch.device("meta"):
        model: nn.Module = timm.create_model(model_name)
    return len(source_head(model, weights.state).weight)


def _from_hub(model_name: str, *, cache: Path) -> Weights:
    cfg = timm.get_pretrained_cfg(model_name)
    place = _hub_address(cfg)
    if place is None:
        message = (
            f"weights = 'timm' needs a model with weights on the timm hub, got {model_name!r}; "
            "pass a file, or weights = 'random' for no transfer"
        )
        raise WeightsError(message)
    kept = cache / f"{model_name}.safetensors"
    if not kept.is_file():
        _download(model_name, place, kept)
    # Of the tensors, not of the file: hub and copy lay out the same weights in their own way.
    state = _read(kept).state
    return Weights(origin=place, digest=_state_digest(state), state=state)


def _download(model_name: str, place: str, kept: Path) -> None:
    """Fetch weights and keep them as timm lays them out, so that no later run needs the hub."""
    try:
        # Building the model draws random numbers, which the weights then replace.
        with seeded(0), _quiet("huggingface_hub"):
            model = timm.create_model(model_name, pretrained=True, cache_dir=kept.parent)
    except Exception as error:
        # The hub's client raises classes of four libraries; whatever it is, the user can fetch.
        message = (
            f"the weights of {model_name!r} must be downloadable from {place}, got "
            f"{type(error).__name__}: {_first_line(error)}; on a machine with a network fetch "
            f"{place} and pass its path as model.weights"
        )
        raise WeightsError(message) from error
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    # Several workers may download at once: each writes a whole file, and the last one stays.
    kept.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(kept.parent)
    write_durably(kept, safetensors.torch.save(state))


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's warnings out of the terminal: what matters of them is in our error."""
    library = logging.getLogger(name)
    before = library.level
    library.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        library.setLevel(before)


def _hub_address(cfg: Any) -> str | None:
    if cfg is None:
        return None
    if cfg.hf_hub_id:
        name = cfg.hf_hub_filename or "model.safetensors"
        return f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/{name}"
    return str(cfg.url) if cfg.url else None


def _from_directory(path: Path, model_name: str) -> Weights:
    """Read a Hugging Face style directory: config.json beside model.safetensors."""
    found = [path / name for name in DIRECTORY_FILES if (path / name).is_file()]
    if not found:
        _refuse(path, "a weights directory holds model.safetensors", "no such file in it")
    weights = _read(found[0])
    expects: dict[str, Any] = {}
    if (path / "config.json").is_file():
        try:
            config = json.loads((path / "config.json").read_text("utf-8"))
            architecture = config.get("architecture", model_name)
            expects = dict(config.get("pretrained_cfg", {}))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            _refuse(path / "config.json", "config.json is a JSON object", _first_line(error), error)
        if architecture != model_name.partition(".")[0]:
            _refuse(path, f"config.json names model {model_name!r}", f"{architecture!r}")
    return Weights(origin=str(path), digest=weights.digest, state=weights.state, config=expects)


def _read(path: Path) -> Weights:
    if not path.is_file():
        rule = "model.weights is 'timm', 'shipped', 'random', a file or a directory"
        _refuse(path, rule, "no such file")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                # About pickle protocols; what matters is whether the content is all tensors.
                warnings.simplefilter("ignore")
                # weights_only: a file from anywhere must not run code here.
                content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        _refuse(
            path,
            "a weights file is whole and holds tensors only",
            f"{type(error).__name__}: {_first_line(error)}",
            error,
        )
    state = _state_dict(content, path)
    if shape_of(state) is not None:
        _refuse(path, "model.weights are those of a timm model", "a kept source classifier in it")
    return Weights(origin=str(path), digest=digest, state=state)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for key in ENVELOPES:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            logger.info(
                "the state dict in %s is under %r",
                path,
                key,
                extra={"action": "read_weights", "path": str(path), "key": key},
            )
            content = content[key]
    if not isinstance(content, dict) or not content:
        _refuse(path, "a weights file is a dictionary of tensors", type(content).__name__)
    odd = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        _refuse(path, "a weights file is a dictionary of tensors", f"no tensor at {odd[:3]}")
    return {str(name): value for name, value in content.items()}


def _state_digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _refuse(path: Path, rule: str, got: str, cause: BaseException | None = None) -> Never:
    message = f"{rule}, got {str(path)!r}: {got}; pass another file or download it again"
    raise WeightsError(message) from cause


def _first_line(error: BaseException) -> str:
    lines: Iterable[str] = str(error).splitlines() or [type(error).__name__]
    return next(iter(lines))[:200]
