"""The reproduced tables for a terminal, as Markdown and as CSV."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nbtl_search.reports.reproduction import (
    PAPER_BLOCKS,
    PAPER_MODEL,
    ReproducedRow,
    Reproduction,
)
from nbtl_search.reports.terminal.tables import clean
from nbtl_search.spec.paper import figure, paper_tables

_MARKDOWN: Final = re.compile(r"([\\`*_\[\]<>|~#])")
_RIGHT: Final = ("paper", "ours", "test", "diff")
_LEGEND: Final = "notes: what the paper does not print; with ?: suspect, kept as printed"
_CSV: Final = (
    "table",
    "label",
    "setting",
    "paper_top1",
    "paper_std",
    "recipe",
    "trial",
    "state",
    "n_epochs",
    "val_top1",
    "best_epoch",
    "difference",
)


def render(reproduction: Reproduction) -> RenderableType:
    """Return the tables for a terminal of 80 columns."""
    notes = _Notes(reproduction)
    parts: list[RenderableType] = [Text(line) for line in header(reproduction)]
    for number in _tables(reproduction):
        headers, rows = _grid(reproduction, number, notes)
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for name in headers:
            table.add_column(
                name,
                overflow="fold",
                justify="right" if name in _RIGHT else "left",
                no_wrap=name in _RIGHT,
            )
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        parts += ["", Text(_title(reproduction, number), style="bold"), table]
    parts += ["", *(Text(line, style="dim") for line in [_LEGEND, *notes.lines()])]
    steps = reproduction.next_steps
    width = max((len(command) for command, _ in steps), default=0)
    parts += [Text(f"next: {command:{width}}  {purpose}") for command, purpose in steps]
    return Group(*parts)


def markdown(reproduction: Reproduction) -> str:
    """Return the tables as Markdown."""
    notes = _Notes(reproduction)
    parts = ["\n".join(f"* {_escaped(line)}" for line in header(reproduction))]
    for number in _tables(reproduction):
        headers, rows = _grid(reproduction, number, notes)
        rule = ["---:" if name in _RIGHT else ":---" for name in headers]
        lines = [headers, rule, *([_escaped(cell) for cell in row] for row in rows)]
        parts.append(f"## {_escaped(_title(reproduction, number))}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append("\n".join(f"* {_escaped(line)}" for line in [_LEGEND, *notes.lines()]))
    parts += [f"Next: `{command}` ({purpose})" for command, purpose in reproduction.next_steps]
    return "\n\n".join(parts) + "\n"


def comma_separated(reproduction: Reproduction) -> str:
    """Return a line per row of every table, with all digits; texts of notes included."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_CSV, "test_top1", "test_std", "test_n", "suspect", "assumed"])
    for row in reproduction.rows:
        test = (None, None, None) if row.test is None else (row.test.mean, row.test.std, row.test.n)
        notes = ("; ".join(row.suspect), "; ".join(row.assumed))
        writer.writerow([*(getattr(row, name) for name in _CSV), *test, *notes])
    return text.getvalue()


def header(reproduction: Reproduction) -> list[str]:
    """Say what stands beside what, and why the two are not the same measurement."""
    one = reproduction
    ours = f"{one.model} at {one.image_px} px, {one.n_epochs} epochs"
    images = f"{one.n_train:,} images to train, {one.n_val:,} to validate"
    trained = f"{one.n_ended} of {one.n_recipes} recipes trained"
    lines = [
        f"{one.study}: tables 2-6 of arXiv 2107.08585 for {one.dataset}, {trained}",
        "paper: test top-1 in %, mean ± deviation of 4 runs, Inception-v4 at 299 px",
        f"ours: validation top-1 in %, best epoch (in brackets) of one run, {ours}; {images}",
        "diff: ours - paper: other images, our own schedule; compare the order of rows",
    ]
    if one.n_blocks != PAPER_BLOCKS or one.model != PAPER_MODEL:
        lines.append(
            f"Numbers of low and L2-SP layers are parts of Inception-v4's {PAPER_BLOCKS}, scaled "
            f"to the {one.n_blocks} blocks of {one.model}"
        )
    return lines


class _Notes:
    """Footnotes, numbered in the order in which rows name them."""

    def __init__(self, reproduction: Reproduction) -> None:
        texts = [
            (text, is_suspect)
            for row in reproduction.rows
            for is_suspect, group in ((True, row.suspect), (False, row.assumed))
            for text in group
        ]
        self._numbers = {text: index for index, text in enumerate(dict(texts), start=1)}
        self._suspect = {text for text, is_suspect in texts if is_suspect}
        self._of_tables = reproduction.table_notes

    def marks(self, row: ReproducedRow) -> str:
        """Return a row's footnotes; a suspect cell has a question mark."""
        texts = sorted([*row.suspect, *row.assumed], key=self._numbers.__getitem__)
        return " ".join(self._mark(text) for text in texts)

    def lines(self) -> Iterator[str]:
        """Return the texts."""
        for text in self._numbers:
            yield f"[{self._mark(text)}] {text}"
        for table, texts in self._of_tables.items():
            for text in texts:
                yield f"table {table}: {text}"

    def _mark(self, text: str) -> str:
        return f"{'?' if text in self._suspect else ''}{self._numbers[text]}"


def _tables(reproduction: Reproduction) -> list[int]:
    return sorted({row.table for row in reproduction.rows})


def _title(reproduction: Reproduction, table: int) -> str:
    title = f"Table {table}. {paper_tables()[f'table{table}']['title']}"
    runs = [row.test.n for row in reproduction.rows if row.test and row.table == table]
    if runs:
        title += (
            f" (test: ours, {max(runs)} runs, single crop, trained on train + validation; diff: of "
            "test where there is one)"
        )
    return title


def _has_test(reproduction: Reproduction, table: int) -> bool:
    return any(row.test is not None for row in reproduction.rows if row.table == table)


def _grid(
    reproduction: Reproduction, table: int, notes: _Notes
) -> tuple[list[str], list[Sequence[str]]]:
    """Return the headings and the cells of one table."""
    has_test = _has_test(reproduction, table)
    headers = ["row", "setting", "paper", "ours", *(["test"] if has_test else []), "diff", "notes"]
    rows: list[Sequence[str]] = []
    for row in (row for row in reproduction.rows if row.table == table):
        paper = "" if row.paper_top1 is None else figure(row.paper_top1, row.paper_std)
        diff = "" if row.difference is None else f"{row.difference:+.2f}"
        ours = [_ours(row, reproduction.n_epochs), *([_test(row)] if has_test else [])]
        rows.append([row.label, row.setting, paper, *ours, diff, notes.marks(row)])
    return headers, rows


def _ours(row: ReproducedRow, n_epochs: int) -> str:
    if row.val_top1 is not None:
        return f"{row.val_top1:.2f} ({row.best_epoch})"
    if row.cause is not None:
        return f"{row.state}: {row.cause}"
    return f"{row.state} {row.n_epochs}/{n_epochs}" if row.n_epochs else row.state


def _test(row: ReproducedRow) -> str:
    if row.test is None or row.test.mean is None:
        return ""
    std = "" if row.test.std is None else f" ± {row.test.std:.2f}"
    return f"{row.test.mean:.2f}{std}"


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)
