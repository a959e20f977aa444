"""The studies that come with the package: one TOML file per dataset."""

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from nbtl_search.errors import SpecError


def shipped_studies() -> dict[str, Traversable]:
    """Return the TOML file of each shipped study by the study's name, in order of names.

    In a wheel they lie inside the package; in a checkout, beside it.
    """
    package = resources.files("nbtl_search")
    inside = package.joinpath("studies")
    folder = inside if inside.is_dir() else package.joinpath("..", "studies")
    if not folder.is_dir():
        return {}
    files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    return {file.name.removesuffix(".toml"): file for file in sorted(files, key=_name)}


def shipped_study(name: str) -> dict[str, Any]:
    """Return a shipped study as plain data, ready for changes and `StudySpec.parse`.

    Raises:
        SpecError: no study of this name is shipped.
    """
    studies = shipped_studies()
    if name not in studies:
        message = f"a shipped study must be one of {', '.join(studies)}; got {name!r}"
        raise SpecError(message)
    return tomllib.loads(studies[name].read_text("utf-8"))


def _name(file: Traversable) -> str:
    return file.name
