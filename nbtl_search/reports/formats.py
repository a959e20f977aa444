"""The tables of a report as Markdown, CSV or JSON.

All tables of a report as plain rows, the same for every format.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Final

from nbtl_search.reports import tables as sections_tables
from nbtl_search.reports.content import Content
from nbtl_search.reports.fit import measures
from nbtl_search.reports.prose import sentences
from nbtl_search.reports.table import Cell, Sheet

_MARKDOWN: Final = re.compile(r"([\\`*_\[\]<>|~&#!$])")
_FORMULA: Final = ("=", "+", "-", "@", "\t")


def markdown(content: Content) -> str:
    """Return the verdict and all tables as Markdown; users' text is escaped."""
    parts = [f"# {_plain(content.name)}", *map(_plain, sentences(content))]
    parts.append(_plain(content.importances.reading))
    for sheet in tables(content):
        parts += [f"## {sheet.title}", _table(sheet)]
    return "\n\n".join(parts) + "\n"


def comma_separated(content: Content) -> str:
    """Return all tables as one CSV of four columns: table, row (from 1), column, value.

    Text that a spreadsheet would run as a formula has an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value"])
    for sheet in tables(content):
        for index, row in enumerate(sheet.rows, start=1):
            writer.writerows([sheet.name, index, key, _safe(value)] for key, value in row.items())
    return text.getvalue()


def as_json(content: Content) -> str:
    """Return the verdict, the tables and the provenance as JSON."""
    plain = {
        "study": content.name,
        "made_at": content.made_at.isoformat(),
        "verdict": list(sentences(content)),
        "importance_reading": content.importances.reading,
        "tables": {sheet.name: [dict(row) for row in sheet.rows] for sheet in tables(content)},
        "fingerprint": content.spec.fingerprint(),
        "specification": content.spec.plain(),
        "versions": dict(content.provenance.versions),
        "commit": content.provenance.commit,
        "made_on": {
            "system": content.provenance.host,
            "cpu": content.provenance.cpu,
            "n_cores": content.provenance.n_cores,
            "memory_gb": round(content.provenance.memory_gb, 1),
        },
        "devices": [
            {"host": one.host, "device": one.device, "n_workers": one.n_workers}
            for one in content.provenance.devices
        ],
    }
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


def _table(sheet: Sheet) -> str:
    head = [column.title for column in sheet.columns]
    rule = [":---" if column.is_text else "---:" for column in sheet.columns]
    body = [[_plain(column.show(row)) for column in sheet.columns] for row in sheet.rows]
    return "\n".join(_line(cells) for cells in [head, rule, *body])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Escape what Markdown or HTML would take for their own, and keep it in one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _safe(value: Cell) -> Cell:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def tables(content: Content) -> tuple[Sheet, ...]:
    """Return every table of the report, in its order; those without rows are left out."""
    made = (
        sections_tables.final(content),
        sections_tables.contenders(content),
        sections_tables.searched(content),
        sections_tables.trials(content),
        sections_tables.importance(content),
        sections_tables.cost(content),
        sections_tables.runs(content),
        sections_tables.readings(content),
        sections_tables.paper(content),
        measures(content),
    )
    return tuple(sheet for sheet in made if sheet.rows)
