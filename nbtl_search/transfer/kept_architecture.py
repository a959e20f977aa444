"""A timm architecture with a kept source classifier, so that timm loads such an export itself.

Importing this module registers it. After that `timm.create_model("local-dir:…", pretrained=True)`
builds a folder whose config.json is that of `config_entries`, and loads its weights strictly. timm
without this package knows no such architecture and says so, rather than loading a part of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models import load_pretrained, register_model
from torch import Tensor, nn

from nbtl_search.transfer.source_classifier import put_classifier, shape_of

__all__ = ["config_entries", "kept_source_classifier"]


def config_entries(model_name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what config.json needs beside the entries of any export; {} without kept classifier.

    Args:
        model_name: of the timm model below the new layers.
        state: the exported state dict.
    """
    shape = shape_of(state)
    if shape is None:
        return {}
    return {
        "architecture": kept_source_classifier.__name__,
        "num_classes": shape.n_classes,
        "model_args": {
            "backbone": model_name,
            "n_source": shape.n_source,
            "hidden": list(shape.hidden),
        },
    }


@register_model
def kept_source_classifier(
    pretrained: bool = False,  # noqa: FBT001, FBT002 timm's own signature
    *,
    backbone: str = "inception_v4",
    n_source: int = 1000,
    hidden: Sequence[int] = (),
    num_classes: int | None = None,
    pretrained_cfg: Any = None,
    **_: Any,
) -> nn.Module:
    """Build a timm model whose classifier is kept below new layers; load its weights if asked."""
    config = pretrained_cfg if isinstance(pretrained_cfg, dict) else pretrained_cfg.to_dict()
    n_classes = num_classes or int(config["num_classes"])
    model: Any = timm.create_model(backbone, num_classes=n_source)
    put_classifier(model, n_classes=n_classes, hidden=tuple(hidden))
    model.pretrained_cfg = config
    if pretrained:
        load_pretrained(model, pretrained_cfg=config, num_classes=n_classes)
    built: nn.Module = model
    return built
