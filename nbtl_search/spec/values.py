"""Value: the base of all that is stored, sent or printed, with errors a person can use."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from nbtl_search.errors import SpecError

Progress = Callable[[int, int], None]
"""Called with (done, in all); what it raises ends the work."""
StageProgress = Callable[[str, int, int], None]
"""Called with (stage, done, in all); what it raises ends the work."""


class Value(BaseModel):
    """A frozen value whose unknown keys are refused, naming the nearest known one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    @classmethod
    def parse(cls, mapping: Mapping[str, Any]) -> Self:
        """Build from plain data, as TOML or JSON give it.

        Raises:
            SpecError: the first thing wrong, in one line, with its dotted path.
        """
        try:
            return cls.model_validate(mapping)
        except ValidationError as error:
            raise SpecError(_one_line(cls, error)) from error

    @classmethod
    def parse_json(cls, text: str) -> Self:
        """Build from a JSON text.

        Raises:
            SpecError: the first thing wrong, in one line, with its dotted path.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise SpecError(_one_line(cls, error)) from error

    @classmethod
    def from_row(cls, row: object) -> Self:
        """Build from a database row, whose columns have the names of the fields, among others.

        Raises:
            SpecError: a column is missing, or holds what no such value has.
        """
        try:
            return cls.model_validate(row, from_attributes=True)
        except ValidationError as error:
            raise SpecError(_one_line(cls, error)) from error

    def plain(self) -> dict[str, Any]:
        """Return plain data that JSON and TOML can hold; None values are left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these fields changed, validated like a new one."""
        return self.parse({name: getattr(self, name) for name in self.model_fields_set} | changes)


def _one_line(cls: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path) or cls.__name__
    if first["type"] == "extra_forbidden":
        known = _keys_at(cls, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"unknown key {dotted!r}; {hint}"
    received = "" if first["type"] == "missing" else f", got {first['input']!r:.100}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{dotted}: {message[0].lower()}{message[1:]}{received}"


def _keys_at(cls: type[BaseModel], path: list[str]) -> list[str]:
    """Return the field names of the model that `path` leads to inside `cls`."""
    for part in path:
        if part.isdigit() or part not in cls.model_fields:
            continue
        inner = _model_in(cls.model_fields[part].annotation)
        if inner is None:
            return []
        cls = inner
    return list(cls.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model class inside an annotation such as `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
