"""Formats of a report beside the page: the same tables as Markdown, CSV or JSON."""

import csv
import io
import json

from nbtl_search import escaping
from nbtl_search.reports import table
from nbtl_search.reports.content import Content
from nbtl_search.reports.prose import verdict_sentences
from nbtl_search.reports.table import Cell
from nbtl_search.reports.tables import all_tables


def markdown(content: Content) -> str:
    """Return the verdict and all tables as Markdown; users' text is escaped."""
    said = (*verdict_sentences(content), content.importances.reading)
    parts = [f"# {escaping.markdown(content.name)}", *map(escaping.markdown, said)]
    for one in all_tables(content):
        parts += [f"## {one.title}", table.markdown(one)]
    return "\n\n".join(parts) + "\n"


def comma_separated(content: Content) -> str:
    """Return all tables as one CSV of four columns: table, row (from 1), column, value.

    Text that a spreadsheet would run as a formula has an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value"])
    for one in all_tables(content):
        for index, row in enumerate(one.rows, start=1):
            writer.writerows([one.name, index, key, _safe(value)] for key, value in row.items())
    return text.getvalue()


def as_json(content: Content) -> str:
    """Return the verdict, the tables and the provenance as JSON."""
    plain = {
        "study": content.name,
        "made_at": content.made_at.isoformat(),
        "verdict": list(verdict_sentences(content)),
        "importance_reading": content.importances.reading,
        "tables": {one.name: [dict(row) for row in one.rows] for one in all_tables(content)},
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


def _safe(value: Cell) -> Cell:
    return escaping.spreadsheet(value) if isinstance(value, str) else value
