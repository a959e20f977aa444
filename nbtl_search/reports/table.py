"""The table of a report: rows for machines, columns for people, and how both are shown.

One value for a terminal, for Markdown and for the page, whose template reads `across` and
`remarks`. All three escape the cells, so a column's `show` returns a user's text as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rich.table import Table as TerminalTable
from rich.text import Text

from nbtl_search import escaping

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
NONE: Final = "—"


def _no_style(row: Row) -> str:  # noqa: ARG001  (of any row)
    return ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """How people see a part of a row: a heading, and the text of a cell."""

    title: str
    show: Callable[[Row], str]
    is_text: bool = False
    """Words, which stand to the left, and may be a user's; else numbers."""
    is_below: bool = False
    """Long words: on a page they have a line of their own below the row."""
    is_whole: bool = False
    """Words that a narrow terminal must not break; it never breaks numbers."""
    max_width: int | None = None
    """In a terminal, in characters."""
    style: Callable[[Row], str] = _no_style
    """Rich's style of a cell in a terminal."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows, as JSON and CSV have them, and the columns that people see of them."""

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]

    @property
    def across(self) -> tuple[Column, ...]:
        """The columns that stand side by side on a page."""
        return tuple(column for column in self.columns if not column.is_below)

    def remarks(self, row: Row) -> list[str]:
        """Return what a page says below a row."""
        shown = (column.show(row) for column in self.columns if column.is_below)
        return [text for text in shown if text]


def text(title: str, key: str) -> Column:
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


def number(title: str, key: str, form: str = ".2f", *, none: str = NONE) -> Column:
    """Return a column of numbers in this format."""

    def show(row: Row) -> str:
        value = row[key]
        return none if value is None else format(value, form)

    return Column(title=title, show=show)


def spread(title: str, key: str) -> Column:
    """Return a column of means with their standard deviations."""

    def show(row: Row) -> str:
        mean, std = row[f"{key}_mean"], row[f"{key}_std"]
        if mean is None:
            return NONE
        return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"

    return Column(title=title, show=show)


def interval(title: str, key: str, *, sign: Literal["", "+"] = "") -> Column:
    """Return a column of means with their intervals."""

    def show(row: Row) -> str:
        mean, low, high = row[key], row[f"{key}_low"], row[f"{key}_high"]
        return NONE if mean is None else f"{mean:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"

    return Column(title=title, show=show)


def text_of(value: Cell) -> str:
    """Return a value as text in one line, or a dash."""
    return NONE if value is None else " ".join(str(value).split())


def duration(seconds: float) -> str:
    """Return a span of time in its two largest units.

    >>> duration(3725)
    '1 h 02 min'
    """
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"


def markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown, without its title."""
    head = [column.title for column in table.columns]
    rule = [":---" if column.is_text else "---:" for column in table.columns]
    body = [[escaping.markdown(column.show(row)) for column in table.columns] for row in table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *body])


def terminal(
    table: Table, *, gap: int = 1, emphasis: Callable[[Row], str] = _no_style
) -> TerminalTable:
    """Return the table for a terminal, without its title.

    Args:
        table: to draw; it gives way to a narrow terminal by breaking words.
        gap: spaces between columns.
        emphasis: Rich's style of a whole row.
    """
    drawn = TerminalTable(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column in table.columns:
        drawn.add_column(
            column.title,
            justify="left" if column.is_text else "right",
            overflow="fold",  # what is cut off cannot be read anywhere else
            no_wrap=column.is_whole or not column.is_text,
            max_width=column.max_width,
        )
    for row in table.rows:
        # As `Text`, since Rich would take [brackets] in a string for markup.
        cells = (Text(_lines(column.show(row)), column.style(row)) for column in table.columns)
        drawn.add_row(*cells, style=emphasis(row))
    return drawn


def _lines(text: str) -> str:
    return "\n".join(map(escaping.terminal, text.split("\n")))
