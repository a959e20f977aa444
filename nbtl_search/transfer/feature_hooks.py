"""Feature hooks: the maps inside a network that DELTA compares, and their recording.

The places: Li et al. 2019, "DELTA: DEep Learning Transfer using Feature Map with
Attention", arXiv 1901.09229, takes the last convolution of each stage. The blocks of Inception-v4
below are our choice of the same places.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, cast

from jaxtyping import Float
from timm.models.inception_v4 import InceptionV4
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nbtl_search.errors import SpecError

# Batch, channels, and positions in one or more dimensions: others at every hook.
Map = Float[Tensor, "batch _ ..."]


class FeatureHook(NamedTuple):
    """A module whose output is a feature map, by its name, and the channels of that map."""

    module: str
    n_channels: int


# The last stem unit, and the last block of each of the types A, B and C.
INCEPTION_V4_HOOKS = (
    FeatureHook("features.2", 64),
    FeatureHook("features.9", 384),
    FeatureHook("features.17", 1024),
    FeatureHook("features.21", 1536),
)


def hooks_of(model: nn.Module, *, n: int = 4) -> tuple[FeatureHook, ...]:
    """Return the last n hooks of a timm model, in forward order.

    Inception-v4 has the blocks 2, 9, 17 and 21; other models have what their `feature_info` names.

    Raises:
        SpecError: n < 1, or the model does not say where its feature maps are.
    """
    if n < 1:
        message = f"n >= 1 hooks, got {n}; choose at least one"
        raise SpecError(message)
    if isinstance(model, InceptionV4):
        return INCEPTION_V4_HOOKS[-n:]
    modules = dict(model.named_modules())
    info: Iterable[dict[str, Any]] = cast("Any", getattr(model, "feature_info", None)) or ()
    found = tuple(FeatureHook(str(one["module"]), int(one["num_chs"])) for one in info)
    if not found or any(hook.module not in modules for hook in found):
        message = (
            f"a model with feature maps has a feature_info that names its modules, got "
            f"{type(model).__name__} with {[hook.module for hook in found]}; choose another model"
        )
        raise SpecError(message)
    return found[-n:]


class FeatureHooks:
    """Records the feature maps of every forward pass inside its context.

    `maps` holds those of the last pass, by module, with the channels as second dimension whatever
    the model's own layout is. They keep their graph: for a source network, run it without
    gradients. Leaving the context removes the hooks and lets go of the maps.
    """

    def __init__(self, model: nn.Module, hooks: Iterable[FeatureHook]) -> None:
        self.maps: dict[str, Tensor] = {}
        self._model = model
        self._hooks = tuple(hooks)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "FeatureHooks":  # noqa: PYI034 beartype takes Self in classes only
        """Register the hooks."""
        for hook in self._hooks:
            module = self._model.get_submodule(hook.module)
            self._handles.append(module.register_forward_hook(self._recorder(hook)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.maps.clear()

    def _recorder(self, hook: FeatureHook) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.maps[hook.module] = output.movedim(channel_axis(output, hook), 1)

        return record


def channel_axis(output: Any, hook: FeatureHook) -> int:
    """Return which dimension of a hook's output the channels are: the second, or the last.

    Raises:
        SpecError: neither has as many entries as the hook has channels.
    """
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    for axis in (1, len(shape) - 1):
        if len(shape) >= 3 and shape[axis] == hook.n_channels:
            return axis
    got = f"shape {shape}" if shape else type(output).__name__
    message = (
        f"the output of {hook.module!r} is a feature map with {hook.n_channels} channels, "
        f"got {got}; choose another model"
    )
    raise SpecError(message)
