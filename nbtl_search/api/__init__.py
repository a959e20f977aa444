"""Functions of the program, such as `create` and `launch`: thin, over a `Workspace`.

Each takes `home` (the folder for data, weights, checkpoints and the embedded database) and, where
it needs the database, `storage` (a PostgreSQL URL; None for the embedded one), makes a `Workspace`
of them and calls one method. What a verb needs is imported with its first call: `status` must not
wait for torch.
"""

from nbtl_search.api.machine import (
    backup,
    best_slots,
    clean,
    doctor,
    follow,
    logs,
    logs_folder,
    notify,
    packed,
    preflight,
    restore,
    tell_test,
)
from nbtl_search.api.results import (
    ablate,
    ablation,
    export,
    finalize,
    predict,
    report,
    reproduce,
    train,
    verdict,
)
from nbtl_search.api.search import (
    best,
    cancel,
    create,
    dashboard,
    delete,
    diagnose,
    draft,
    extend,
    fork,
    launch,
    launch_on_slurm,
    prepare,
    status,
    steer,
    studies,
    work,
)
from nbtl_search.workspace.workspace import default_home

__all__ = [
    "ablate",
    "ablation",
    "backup",
    "best",
    "best_slots",
    "cancel",
    "clean",
    "create",
    "dashboard",
    "default_home",
    "delete",
    "diagnose",
    "doctor",
    "draft",
    "export",
    "extend",
    "finalize",
    "follow",
    "fork",
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
