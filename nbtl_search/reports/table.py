"""One table of a report: rows for machines, columns for people."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
NONE: Final = "—"


@dataclass(frozen=True, kw_only=True)
class Column:
    """How people see a part of a row: a heading, and the text of a cell."""

    title: str
    show: Callable[[Row], str]
    is_text: bool = False
    """Words, which stand to the left, and may be a user's; else numbers."""
    is_below: bool = False
    """Long words: on a page they have a line of their own below the row."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table: rows for machines, columns for people."""

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]


def words(title: str, key: str) -> Column:
    """Return a column of words."""
    return Column(title=title, show=lambda row: text_of(row[key]), is_text=True)


def remark(title: str, key: str) -> Column:
    """Return a column of long words, below the row on a page; nothing where there are none."""
    return Column(
        title=title, show=lambda row: text_of(row[key] or ""), is_text=True, is_below=True
    )


def count(title: str, key: str) -> Column:
    """Return a column of whole numbers."""
    return Column(title=title, show=lambda row: text_of(row[key]))


def number(title: str, key: str, form: str = ".2f") -> Column:
    """Return a column of numbers in this format."""

    def show(row: Row) -> str:
        value = row[key]
        return NONE if value is None else format(value, form)

    return Column(title=title, show=show)


def spread(title: str, key: str) -> Column:
    """Return a column of means with their standard deviations."""

    def show(row: Row) -> str:
        mean, std = row[f"{key}_mean"], row[f"{key}_std"]
        if mean is None:
            return NONE
        return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"

    return Column(title=title, show=show)


def interval(title: str) -> Column:
    """Return a column of gains with their intervals."""

    def show(row: Row) -> str:
        gain, low, high = row["gain"], row["gain_low"], row["gain_high"]
        if gain is None:
            return NONE
        bounds = "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"
        return f"{gain:+.2f}{bounds}"

    return Column(title=title, show=show)


def text_of(value: Cell) -> str:
    """Return a value as text in one line, or a dash."""
    return NONE if value is None else " ".join(str(value).split())
