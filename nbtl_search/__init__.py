"""Hyperparameter search for non-binary transfer learning.

    from pathlib import Path
    import nbtl_search as nbtl

    nbtl.create("textures")
    nbtl.launch("textures", workers=2)
    verdict = nbtl.finalize("textures")
    nbtl.export("textures", Path("model"))

Names are imported when first used, so that `import nbtl_search` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtl_search.api import (
        ablate,
        ablation,
        best,
        cancel,
        create,
        dashboard,
        delete,
        diagnose,
        export,
        extend,
        finalize,
        fork,
        launch,
        predict,
        prepare,
        report,
        reproduce,
        status,
        steer,
        studies,
        train,
        verdict,
    )
    from nbtl_search.spec import Recipe, StudySpec
    from nbtl_search.workspace.workspace import Workspace

__all__ = [
    "Recipe",
    "StudySpec",
    "Workspace",
    "ablate",
    "ablation",
    "best",
    "cancel",
    "create",
    "dashboard",
    "delete",
    "diagnose",
    "export",
    "extend",
    "finalize",
    "fork",
    "launch",
    "predict",
    "prepare",
    "report",
    "reproduce",
    "status",
    "steer",
    "studies",
    "train",
    "verdict",
]


_MODULES = {"Recipe": "spec", "StudySpec": "spec", "Workspace": "workspace.workspace"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    module = import_module(f"{__name__}.{_MODULES.get(name, 'api')}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
