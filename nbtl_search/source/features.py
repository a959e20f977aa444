"""Features of images under pre-trained weights: extracted once, kept in parts below home.

Under `<home>/features/<key>/` lie the parts of one split; the key holds all that they depend on.
What was killed goes on at the first part that is missing or damaged.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
import timm
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from nbtl_search.data.loader import EvalBatches
from nbtl_search.data.prepared import Prepared
from nbtl_search.errors import SpecError, WeightsError
from nbtl_search.files import arrays
from nbtl_search.files.atomic import remove_abandoned, write_durably
from nbtl_search.files.shared_folder import writing_below
from nbtl_search.network.device import Placement, place
from nbtl_search.network.model import SourceNetwork, build
from nbtl_search.network.weights import RANDOM, Weights, read_weights
from nbtl_search.spec import POOLED, Dials, Progress, Recipe
from nbtl_search.transfer.distillation import SourceHead, source_head
from nbtl_search.transfer.layers import layers_of

Output = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n d"]]
Head = tuple[Float32[np.ndarray, "z d"], Float32[np.ndarray, " z"]]
SPLITS: Final = ("train", "val")
PART: Final = 512
BATCH: Final = 32  # divides PART, so that no batch depends on where an extraction was resumed


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of the train and val images under pre-trained weights, with their labels."""

    train: Float32[np.ndarray, "n d"]
    train_labels: Int64[np.ndarray, " n"]
    val: Float32[np.ndarray, "m d"]
    """Without rows where only train was asked for."""
    val_labels: Int64[np.ndarray, " m"]
    head_weight: Float32[np.ndarray, "z d"] | None
    """Of the classifier that came with the weights; None where there is none for this layer."""
    head_bias: Float32[np.ndarray, " z"] | None
    data_digest: str
    weights_digest: str
    n_classes: int
    layer: str
    device: str
    """What computed them, now or when they were kept."""


def source_network(
    recipe: Recipe,
    *,
    home: Path,
    prepared: Prepared,
    n_threads: int | None = None,
    weights: Weights | None = None,
) -> SourceNetwork:
    """Build the network of a recipe's pre-trained weights alone, nothing reinitialised.

    The recipe's dials do not count. In a run the network has a copy already: `Network.source`.

    Args:
        recipe: of which the model, the images' format and the device count.
        home: below it downloads are cached.
        prepared: the recipe's data.
        n_threads: of a CPU; by default all cores', or as OMP_NUM_THREADS says.
        weights: of the recipe's model, where they have been read already.

    Raises:
        SpecError: the weights are random, or the model is unknown.
        WeightsError: the weights cannot be had, or are of another network.
    """
    check_pretrained(recipe)
    weights = weights or read_weights(recipe.model, home=home)
    placement = Placement(device=place(recipe.train).device, bf16=False, n_threads=n_threads)
    network = build(
        recipe.replace(dials=Dials()),
        n_classes=len(prepared.classes),
        home=home,
        placement=placement,
        prepared=prepared,
        weights=weights,
    )
    return SourceNetwork(
        name=recipe.model.name,
        model=network.model.eval(),
        head=_head(network.model, weights),
        image_format=network.image_format,
        weights_digest=weights.digest,
        placement=placement,
    )


def check_pretrained(recipe: Recipe) -> None:
    """Refuse random weights: there is nothing to diagnose.

    Raises:
        SpecError: they are random.
    """
    if recipe.model.weights == RANDOM:
        message = (
            "a diagnosis needs pre-trained weights: model.weights != 'random', got 'random'; name "
            "'timm', 'shipped', a file or a folder"
        )
        raise SpecError(message)


def _head(model: nn.Module, weights: Weights) -> SourceHead | None:
    """Return the classifier in the weights; most measures do without one."""
    try:
        return source_head(model, weights.state)
    except (SpecError, WeightsError):
        return None


def extract(
    prepared: Prepared,
    source: SourceNetwork,
    *,
    home: Path,
    splits: Sequence[str] = SPLITS,
    layer: str = POOLED,
    progress: Progress | None = None,
) -> Features:
    """Return the features of prepared images under pre-trained weights; kept for next time.

    In evaluation mode and float32, whatever the arithmetic of the run beside it; images are under
    the evaluation transform.

    Args:
        prepared: the images.
        source: the network of the weights.
        home: below it the features are kept.
        splits: ('train', 'val') or ('train',).
        layer: 'pooled', or a block's number from the input.
        progress: called with (images done, images in all).

    Raises:
        SpecError: the network has no such layer.
        DataError: a split was not prepared, or the disk is full.
    """
    _check_splits(splits)
    exact = _in_float32(source)
    extraction = _Extraction(
        prepared=prepared, source=exact, output=output_at(exact.model, layer), layer=layer
    )
    arrays, device = _kept(extraction, splits, home / "features", progress)
    n_features = arrays["train"].shape[1]
    weight, bias = _arrays(source.head) if layer == POOLED else (None, None)
    return Features(
        train=arrays["train"],
        train_labels=prepared.labels("train"),
        val=arrays.get("val", np.empty((0, n_features), np.float32)),
        val_labels=prepared.labels("val") if "val" in splits else np.empty(0, np.int64),
        head_weight=weight,
        head_bias=bias,
        data_digest=prepared.digest,
        weights_digest=source.weights_digest,
        n_classes=len(prepared.classes),
        layer=layer,
        device=device,
    )


def _check_splits(splits: Sequence[str]) -> None:
    if tuple(splits) not in (SPLITS, SPLITS[:1]):
        message = f"features are of {SPLITS} or {SPLITS[:1]}, got {tuple(splits)}; ask for these"
        raise SpecError(message)


def _in_float32(source: SourceNetwork) -> SourceNetwork:
    """Return the network as a run without bf16 would have it.

    Features are kept for runs of any precision. On a GPU bf16 lays the weights out channels_last,
    where cuDNN takes other algorithms with other last digits: then it is a copy that is laid out
    anew, since the run goes on with its own.
    """
    placement = replace(source.placement, bf16=False)
    if placement.memory_format == source.placement.memory_format:
        return replace(source, placement=placement)
    model = copy.deepcopy(source.model).to(memory_format=placement.memory_format)
    return replace(source, model=model, placement=placement)


def _arrays(head: SourceHead | None) -> Head | tuple[None, None]:
    """Return weight and bias of the source classifier, where it tells classes apart.

    So the source logits are `features @ weight.T + bias`.
    """
    if head is None or len(head.weight) < 2:
        return None, None
    bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias
    return head.weight.cpu().numpy(), bias.cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class _Extraction:
    """Everything that the features of a split follow from."""

    prepared: Prepared
    source: SourceNetwork
    output: Output
    layer: str

    def plain(self, split: str) -> dict[str, Any]:
        """Return what the key of a split's features is made of."""
        return {
            "data_digest": self.prepared.digest,
            "weights_digest": self.source.weights_digest,
            "model": self.source.name,
            "image_format": asdict(self.source.image_format),
            "layer": self.layer,
            "split": split,
            "batch_size": BATCH,
            "versions": {"pillow": PIL.__version__, "timm": timm.__version__},
        }

    def rows(
        self, split: str, part: slice, seen: Callable[[int], None]
    ) -> Float32[np.ndarray, "n d"]:
        """Compute the features of some images of a split; tell how many after each batch."""
        placement = self.source.placement
        batches = EvalBatches(
            self.prepared,
            split,
            format=self.source.image_format,
            batch_size=BATCH,
            device=placement.device,
        )
        batches.pixels, batches.labels = batches.pixels[part], batches.labels[part]
        with torch.inference_mode(), placement.numerics(), exact_float32():
            found = []
            for images, _ in batches:
                found.append(self.output(images.to(memory_format=placement.memory_format)))
                seen(len(images))
            rows: Float32[np.ndarray, "n d"] = torch.cat(found).float().cpu().numpy()
        return rows


def _kept(
    extraction: _Extraction, splits: Sequence[str], folder: Path, progress: Progress | None
) -> tuple[dict[str, Float32[np.ndarray, "_ d"]], str]:
    """Read the parts that are there, and make the others."""
    n_all = sum(len(extraction.prepared.labels(split)) for split in splits)
    arrays, n_done, device = {}, 0, ""

    def seen(n: int) -> None:
        nonlocal n_done
        n_done += n
        if progress is not None:
            progress(n_done, n_all)

    seen(0)
    with writing_below(folder):
        for split in splits:
            directory, device = _directory(extraction, split, folder)
            arrays[split] = np.concatenate(list(_parts(extraction, split, directory, seen)))
    return arrays, device


def _parts(
    extraction: _Extraction, split: str, directory: Path, seen: Callable[[int], None]
) -> Iterator[Float32[np.ndarray, "n d"]]:
    remove_abandoned(directory)
    n = len(extraction.prepared.labels(split))
    for start in range(0, n, PART):
        path, part = directory / f"{start:08d}.part", slice(start, min(start + PART, n))
        rows = arrays.read(path, n=part.stop - part.start)
        if rows is None:
            rows = extraction.rows(split, part, seen)
            arrays.write(path, rows)
        else:
            seen(len(rows))
        yield rows


def _directory(extraction: _Extraction, split: str, folder: Path) -> tuple[Path, str]:
    """Return the folder of a split's parts, and the device that began to fill it."""
    plain = extraction.plain(split)
    text = json.dumps(plain, sort_keys=True)
    directory = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
    about = directory / "about.json"
    try:
        return directory, str(json.loads(about.read_text("utf-8"))["device"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        device = device_name(extraction.source.placement.device)
    directory.mkdir(parents=True, exist_ok=True)
    write_durably(about, json.dumps(plain | {"device": device}, indent=2).encode())
    return directory, device


def output_at(model: nn.Module, layer: str) -> Output:
    """Return the function from images to features at a layer.

    'pooled' is what enters the classifier. A number is a block, from 0 at the input: the mean of
    its output over places (or tokens). A block of several modules, such as convolution and
    normalisation, gives the output of its last one.

    Raises:
        SpecError: the network has no such layer, or it has no module of its own.
    """
    if layer == POOLED:
        return _Pooled(model)
    return _Block(model, _block_module(model, layer), layer)


class _Pooled:
    """timm's features, as they enter the classifier."""

    def __init__(self, model: nn.Module) -> None:
        if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
            message = (
                "a model must have timm's forward_features and forward_head, got "
                f"{type(model).__name__}; choose another, or measure a block with --layer"
            )
            raise SpecError(message)
        self.model: Any = model

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        pooled: Tensor = features.flatten(1)
        return pooled


class _Block:
    """The mean over places of what a block's module gives."""

    def __init__(self, model: nn.Module, module: nn.Module, layer: str) -> None:
        self.model, self.module, self.layer = model, module, layer
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        seen: list[Any] = []
        hook = self.module.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
        try:
            self.model(images)
        finally:
            hook.remove()
        if len(seen) != 1 or not isinstance(seen[0], Tensor):
            raise SpecError(self._refusal(f"{len(seen)} outputs, or none that is a tensor"))
        return self._pooled(seen[0])

    def _pooled(self, output: Tensor) -> Tensor:
        match output.ndim:
            case 2:
                return output
            case 3:
                return output.mean(dim=1)
            case 4:
                return output.mean(dim=(1, 2) if self.channels_last else (2, 3))
        raise SpecError(self._refusal(f"shape {tuple(output.shape)}"))

    def _refusal(self, got: str) -> str:
        return (
            f"the block of --layer {self.layer} must give one tensor of images, got {got}; choose "
            f"another block, or {POOLED!r}"
        )


def _block_module(model: nn.Module, layer: str) -> nn.Module:
    layers = layers_of(model)
    if not (layer.isascii() and layer.isdigit()) or int(layer) >= layers.n_blocks:
        message = (
            f"--layer must be {POOLED!r} or a block from 0 to {layers.n_blocks - 1} of "
            f"{type(model).__name__}, got {layer!r}; choose one of these"
        )
        raise SpecError(message)
    name = layers.blocks[int(layer)].name
    last = name.split("+")[-1]
    module: nn.Module | None = dict(model.named_modules()).get(last)
    if module is None:
        message = (
            f"a block must end in a module whose output can be taken, got {name!r} at --layer "
            f"{layer}; choose another block, or {POOLED!r}"
        )
        raise SpecError(message)
    return module


def device_name(device: torch.device) -> str:
    """Return a device in words: 'cpu', or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep a GPU from rounding the factors of float32 products to TF32, and restore that."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def cpu_threads() -> int:
    """Return how many threads torch takes: all cores', unless OMP_NUM_THREADS says otherwise."""
    return torch.get_num_threads()
