"""TOML of recipes and studies, in both directions, and `--set key=value`."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from nbtl_search.errors import SpecError
from nbtl_search.spec.recipe import Recipe
from nbtl_search.spec.study import StudySpec


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as plain data.

    Raises:
        SpecError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read {str(path)!r}: {error}"
        raise SpecError(message) from error
    except tomllib.TOMLDecodeError as error:
        message = f"{path} is not valid TOML: {error}"
        raise SpecError(message) from error


def write_toml(value: Recipe | StudySpec) -> str:
    """Return the value as a TOML text that reads back equal."""
    return tomli_w.dumps(value.plain())


def with_settings(mapping: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return the mapping with each `dotted.key=value` applied; a value is read as TOML.

    Raises:
        SpecError: an assignment without `=`, or a path through a value that is no table.
    """
    result = _copy(mapping)
    for assignment in assignments:
        dotted, separator, text = assignment.partition("=")
        if not separator or not dotted.strip():
            message = f"--set takes KEY=VALUE, got {assignment!r}"
            raise SpecError(message)
        *parents, last = dotted.strip().split(".")
        table = result
        for part in parents:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                message = f"--set {dotted.strip()}: {part!r} is a value, not a table"
                raise SpecError(message)
        table[last] = _toml_value(text.strip())
    return result


def _toml_value(text: str) -> Any:
    """Read a TOML value; what is not one is a string, so quotes are optional."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _copy(value) if isinstance(value, Mapping) else value for key, value in mapping.items()
    }
