"""Blocks of a network that does not say what its blocks are: the order of its modules.

A list of parts becomes its parts, and a part that mainly holds such lists becomes theirs, so that
`stages.1.blocks.2` is a block and its convolutions are not. What has one part with parameters at
most, such as a last normalisation, joins the block before it; parameters of the model itself (a
position embedding) join the first.
"""

from collections.abc import Collection, Iterator, Mapping

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList)


def ordinals(model: nn.Module, classifier: Collection[str] = ()) -> Mapping[str, int]:
    """Return the block of each parameter, by its full name; blocks count from the input.

    The parameters of the classifier are numbered as well, and make no block: what stands beside
    them joins the block before.
    """
    found: dict[str, int] = {}
    last = -1
    for path, part in _parts(model, ""):
        own = [name for name, _ in part.named_parameters()]
        holds_classifier = any(f"{path}.{name}" in classifier for name in own)
        if own and (last < 0 or (_is_composite(part) and not holds_classifier)):
            last += 1
        found |= {f"{path}.{name}": last for name in own}
    return {name: found.get(name, 0) for name, _ in model.named_parameters()}


def _parts(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if _has_blocks(child):
            yield from _parts(child, below)
        else:
            yield below, child


def _has_blocks(module: nn.Module) -> bool:
    """Tell whether a module is a list of composite parts, or mainly holds such lists."""
    if isinstance(module, _LISTS):
        return any(_is_composite(child) for child in module.children())
    n_own = sum(parameter.numel() for parameter in module.parameters())
    in_lists = sum(
        parameter.numel()
        for child in module.children()
        if isinstance(child, _LISTS) and _has_blocks(child)
        for parameter in child.parameters()
    )
    return 2 * in_lists > n_own


def _is_composite(module: nn.Module) -> bool:
    return sum(1 for child in module.children() if any(True for _ in child.parameters())) > 1
