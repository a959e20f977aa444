"""The verbs of the program as functions; the command line calls these and nothing else.

Each function takes `home` (the folder for data, weights, checkpoints and the embedded database)
and, where it needs the database, `storage` (a PostgreSQL URL; None for the embedded one).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtl_search.api.cleaning import clean, follow, logs, logs_folder
    from nbtl_search.api.creating import create, prepare
    from nbtl_search.api.databases import backup, restore
    from nbtl_search.api.diagnosing import diagnose
    from nbtl_search.api.doctoring import doctor
    from nbtl_search.api.drafting import draft
    from nbtl_search.api.exporting import export
    from nbtl_search.api.finalizing import finalize, verdict
    from nbtl_search.api.home import default_home
    from nbtl_search.api.launching import launch_on_slurm
    from nbtl_search.api.looking import best, dashboard, delete, status, steer, studies
    from nbtl_search.api.notifying import notify, tell_test
    from nbtl_search.api.predicting import predict
    from nbtl_search.api.pricing import best_slots, packed, preflight
    from nbtl_search.api.reporting import report
    from nbtl_search.api.reproducing import reproduce
    from nbtl_search.api.running import launch, work
    from nbtl_search.api.training import train

# Each verb's module is imported with its first use: `status` must not wait for torch.
_PLACES = {
    "backup": "databases",
    "best": "looking",
    "best_slots": "pricing",
    "clean": "cleaning",
    "create": "creating",
    "dashboard": "looking",
    "default_home": "home",
    "delete": "looking",
    "diagnose": "diagnosing",
    "doctor": "doctoring",
    "draft": "drafting",
    "export": "exporting",
    "finalize": "finalizing",
    "follow": "cleaning",
    "launch": "running",
    "launch_on_slurm": "launching",
    "logs": "cleaning",
    "logs_folder": "cleaning",
    "notify": "notifying",
    "packed": "pricing",
    "predict": "predicting",
    "preflight": "pricing",
    "prepare": "creating",
    "report": "reporting",
    "reproduce": "reproducing",
    "restore": "databases",
    "status": "looking",
    "steer": "looking",
    "studies": "looking",
    "tell_test": "notifying",
    "train": "training",
    "verdict": "finalizing",
    "work": "running",
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
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
