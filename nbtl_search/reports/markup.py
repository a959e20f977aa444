"""HTML from text that anybody may have written: every value is escaped here and nowhere else."""

import html
from collections.abc import Sequence
from typing import Final

from nbtl_search.reports.table import Column, Row, Sheet

_ENTITIES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "", "\u2029": ""}


def text(value: str) -> str:
    """Escape a text; what cannot be printed is shown as a replacement character."""
    shown = "".join(c if c.isprintable() or c in "\n\t\u2068\u2069" else "\ufffd" for c in value)
    return html.escape(shown)


def name(value: str) -> str:
    """Escape a user's name, and keep its direction of writing to itself."""
    return f"<bdi>{text(' '.join(value.split()))}</bdi>"


def script_json(value: str) -> str:
    """Return a JSON text that may stand inside a script element, and means the same."""
    return "".join(_ENTITIES.get(char, char) for char in value)


def paragraph(value: str, *, kind: str = "") -> str:
    """Return a text as a paragraph."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{text(value)}</p>"


def table(sheet: Sheet, *, caption: bool = True) -> str:
    """Return a table that scrolls in its own box where the window is narrow."""
    across = [column for column in sheet.columns if not column.is_below]
    below = [column for column in sheet.columns if column.is_below]
    head = "".join(f'<th scope="col"{_kind(column)}>{text(column.title)}</th>' for column in across)
    body = "\n".join(_row(row, across, below) for row in sheet.rows)
    title = f"<caption>{text(sheet.title)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(sheet.title)}">'
        f'<table id="table-{text(sheet.name)}">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def details(summary: str, inner: str) -> str:
    """Return what opens at a click, and in print is open."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


def _row(row: Row, across: Sequence[Column], below: Sequence[Column]) -> str:
    cells = "".join(f"<td{_kind(column)}>{_cell(column, row)}</td>" for column in across)
    remarks = [_cell(column, row) for column in below if column.show(row)]
    if not remarks:
        return f"<tr>{cells}</tr>"
    inner = f'<td colspan="{len(across)}">{"; ".join(remarks)}</td>'
    return f'<tr class="above">{cells}</tr><tr class="below">{inner}</tr>'


def _cell(column: Column, row: Row) -> str:
    return name(column.show(row)) if column.is_text else text(column.show(row))


def _kind(column: Column) -> str:
    return ' class="text"' if column.is_text else ""
