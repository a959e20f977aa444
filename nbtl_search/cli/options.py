"""Options that many commands share, and where their values come from."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click

from nbtl_search.errors import StorageError
from nbtl_search.workspace.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])


def home_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--home`; the command gets a `workspace`, whose database is the embedded one."""

    @functools.wraps(command)
    def with_workspace(*, home: Path | None, storage: str | None = None, **others: Any) -> Any:
        return command(workspace=Workspace(home, storage), **others)

    return click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="NBTL_HOME",
        show_envvar=True,
        help="Folder for data, weights, checkpoints and the embedded database.",
    )(with_workspace)


def storage_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--home` and `--storage`; the command gets the `workspace` that they name."""
    return home_option(
        click.option(
            "--storage",
            callback=_storage,
            help="URL of a PostgreSQL database; without it, an embedded one. A password does not "
            "belong here: put the URL in NBTL_STORAGE, or in a file named by NBTL_STORAGE_FILE.",
        )(command)
    )


def launch_options(command: F) -> F:
    """Add what `launch`, `finalize` and `ablate` share: how workers run on this machine."""
    for option in (
        click.option("--quiet", is_flag=True, help="No progress bar."),
        click.option(
            "--beat-s", type=click.FloatRange(min=0.05), help="Seconds between heartbeats."
        ),
        click.option(
            "--gpus",
            callback=_gpus,
            help="Ids of the GPUs to use, such as 0,1; by default all.",
        ),
    ):
        command = option(command)
    return command


def worker_options(beat_s: float | None) -> list[str]:
    """Return the options of `worker` that `launch`, `finalize` and `ablate` pass on."""
    return [] if beat_s is None else ["--beat-s", str(beat_s)]


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def settings_option(command: F) -> F:
    """Add `--set`."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change any setting, such as train.epochs=8 or search.rows.lr_high.low=1e-3.",
    )(command)


_KEYS: Final = {
    "model": "model.name",
    "weights": "model.weights",
    "root": "data.root",
    "image_px": "data.image_px",
    "epochs": "train.epochs",
    "trials": "budget.n_trials",
}


def assignments(shortcuts: dict[str, str | int | None]) -> list[str]:
    """Return options such as `--image-px` as `--set` would have them; texts are quoted."""
    return [
        f"{_KEYS[key]}='''{value}'''" if isinstance(value, str) else f"{_KEYS[key]}={value}"
        for key, value in shortcuts.items()
        if value is not None
    ]


def _gpus(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> list[str] | None:
    return None if value is None else value.split(",")


def _storage(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        if _has_password(value):
            message = (
                "--storage must hold no password, since every user can read it there; put the URL "
                "into a file of mode 0600 and name that in NBTL_STORAGE_FILE"
            )
            raise StorageError(message)
        return value
    if url := os.environ.get("NBTL_STORAGE"):
        return url
    if file := os.environ.get("NBTL_STORAGE_FILE"):
        return _first_line(Path(file))
    return None


def _has_password(url: str) -> bool:
    try:
        return urlsplit(url).password is not None or "password=" in url
    except ValueError:
        return True


def _first_line(file: Path) -> str:
    try:
        lines = file.read_text("utf-8").split()
    except OSError as error:
        message = f"cannot read NBTL_STORAGE_FILE: {error}"
        raise StorageError(message) from error
    if not lines:
        message = f"NBTL_STORAGE_FILE must hold a URL, got the empty file {str(file)!r}"
        raise StorageError(message)
    return lines[0]
