"""The verbs of the program as functions; the command line calls these and nothing else.

Each function takes `home` (the folder for data, weights, checkpoints and the embedded database)
and, where it needs the database, `storage` (a PostgreSQL URL; None for the embedded one).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtl_search.workspace.diagnoses import diagnose
    from nbtl_search.workspace.machine import best_slots, doctor, packed, preflight
    from nbtl_search.workspace.maintenance import (
        backup,
        clean,
        follow,
        logs,
        logs_folder,
        notify,
        restore,
        tell_test,
    )
    from nbtl_search.workspace.models import export, predict, train
    from nbtl_search.workspace.results import finalize, report, reproduce, verdict
    from nbtl_search.workspace.studies import (
        best,
        create,
        dashboard,
        delete,
        draft,
        prepare,
        status,
        steer,
        studies,
    )
    from nbtl_search.workspace.workers import launch, launch_on_slurm, work
    from nbtl_search.workspace.workspace import default_home

# Each verb's module is imported with its first use: `status` must not wait for torch.
_PLACES = {
    "backup": "maintenance",
    "best": "studies",
    "best_slots": "machine",
    "clean": "maintenance",
    "create": "studies",
    "dashboard": "studies",
    "default_home": "workspace",
    "delete": "studies",
    "diagnose": "diagnoses",
    "doctor": "machine",
    "draft": "studies",
    "export": "models",
    "finalize": "results",
    "follow": "maintenance",
    "launch": "workers",
    "launch_on_slurm": "workers",
    "logs": "maintenance",
    "logs_folder": "maintenance",
    "notify": "maintenance",
    "packed": "machine",
    "predict": "models",
    "preflight": "machine",
    "prepare": "studies",
    "report": "results",
    "reproduce": "results",
    "restore": "maintenance",
    "status": "studies",
    "steer": "studies",
    "studies": "studies",
    "tell_test": "maintenance",
    "train": "models",
    "verdict": "results",
    "work": "workers",
}

__all__ = [
    "backup",
    "best",
    "best_slots",
    "clean",
    "create",
    "dashboard",
    "default_home",
    "delete",
    "diagnose",
    "doctor",
    "draft",
    "export",
    "finalize",
    "follow",
    "launch",
    "launch_on_slurm",
    "logs",
    "logs_folder",
    "notify",
    "packed",
    "predict",
    "preflight",
    "prepare",
    "report",
    "reproduce",
    "restore",
    "status",
    "steer",
    "studies",
    "tell_test",
    "train",
    "verdict",
    "work",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"nbtl_search.workspace.{_PLACES[name]}"), name)
