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

from nbtl_search.errors import WeightsError
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
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    **settings: Any,
) -> nn.Module:
    """Build a timm model whose classifier is kept below new layers; load its weights if asked.

    Args:
        pretrained: load the weights beside config.json.
        backbone: the timm model below the new layers.
        n_source: classes of the kept classifier.
        hidden: units of the new layers between.
        num_classes: of the target; None for those of the folder, the only ones with weights.
        pretrained_cfg: of the folder, from timm.
        pretrained_cfg_overlay: replaces entries of it.
        settings: the backbone's own, such as drop_rate.

    Raises:
        WeightsError: there is no folder, another number of classes is wanted than its weights
            have, or its backbone is no timm model.
    """
    config = {**_plain(pretrained_cfg), **(pretrained_cfg_overlay or {})}
    n_classes = _n_classes(config, num_classes, pretrained=pretrained)
    if not timm.is_model(backbone) or backbone == kept_source_classifier.__name__:
        message = f"backbone must be a timm model, got {backbone!r}; export the model again"
        raise WeightsError(message)
    model: Any = timm.create_model(backbone, num_classes=n_source, **settings)
    put_classifier(model, n_classes=n_classes, hidden=tuple(hidden))
    model.pretrained_cfg = model.default_cfg = config
    if pretrained:
        load_pretrained(
            model,
            pretrained_cfg=config,
            num_classes=n_classes,
            in_chans=int(settings.get("in_chans", 3)),
        )
    built: nn.Module = model
    return built


def _plain(config: Any) -> dict[str, Any]:
    """Return the entries that timm read from a folder.

    Raises:
        WeightsError: there are none, as the model was asked for by its name alone.
    """
    if config is None:
        message = (
            "a kept source classifier is built from an exported folder, got its name alone; call "
            "timm.create_model('local-dir:FOLDER', pretrained=True)"
        )
        raise WeightsError(message)
    return dict(config if isinstance(config, dict) else config.to_dict())


def _n_classes(config: Mapping[str, Any], wanted: int | None, *, pretrained: bool) -> int:
    n_classes = int(config["num_classes"])
    if wanted is None or wanted == n_classes:
        return n_classes
    if pretrained or wanted < 1:
        message = (
            f"num_classes == {n_classes}, which the weights above the kept source classifier have, "
            f"got {wanted}; leave it out, and replace the classifier afterwards"
        )
        raise WeightsError(message)
    return wanted
