"""Options that many commands share, and where their values come from."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click

from nbtl_search.errors import StorageError

F = TypeVar("F", bound=Callable[..., Any])


def home_option(command: F) -> F:
    """Add `--home`."""
    return click.option(
        "--home",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="NBTL_HOME",
        show_envvar=True,
        help="Folder for data, weights, checkpoints and the embedded database.",
    )(command)


def storage_option(command: F) -> F:
    """Add `--home` and `--storage`; the command gets the URL, from wherever it comes, or None."""
    return home_option(
        click.option(
            "--storage",
            callback=_storage,
            help="URL of a PostgreSQL database; without it, an embedded one. A password does not "
            "belong here: put the URL in NBTL_STORAGE, or in a file named by NBTL_STORAGE_FILE.",
        )(command)
    )


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
