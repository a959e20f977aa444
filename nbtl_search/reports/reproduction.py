"""Reproduction of the paper's tables 2-6: its rows beside what a study of them has measured.

For a terminal, as Markdown and as CSV.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from nbtl_search import escaping
from nbtl_search.ledger.ledger import TERMINAL
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.paper.tables import (
    PaperRow,
    figure,
    paper_recipes,
    paper_rows,
    paper_tables,
    table_notes,
)
from nbtl_search.reports import table
from nbtl_search.reports.table import Column, Row, Table
from nbtl_search.spec import StudySpec
from nbtl_search.spec.verdict import Entry, Summary, Verdict

PAPER_MODEL: Final = "inception_v4"
PAPER_BLOCKS: Final = 22
_FINAL_TABLE: Final = 6  # the one whose figures a finalisation has counterparts of


@dataclass(frozen=True, kw_only=True)
class ReproducedRow:
    """A row of one of the paper's tables, and ours; accuracies in percent."""

    table: int
    label: str
    setting: str
    paper_top1: float | None
    """None for our winner where the paper has no such row."""
    paper_std: float | None
    recipe: str | None
    """The known recipe of the study; rows of several tables may share it."""
    trial: int | None
    state: str
    """The trial's; '' where no one run gives the figure, 'absent' where the study lacks it."""
    cause: str | None
    n_epochs: int
    val_top1: float | None
    """Validation top-1 of the one run, at its best epoch; None until it is complete."""
    best_epoch: int | None
    test: Summary | None
    """Test top-1 of the final runs, single crop; of an ensemble, n is 1."""
    suspect: tuple[str, ...]
    assumed: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        """Return ours minus the paper's, on test where that is measured, else on validation."""
        ours = self.val_top1 if self.test is None else self.test.mean
        if ours is None or self.paper_top1 is None:
            return None
        return round(ours - self.paper_top1, 6)

    def plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        test = None if self.test is None else self.test.model_dump(mode="json")
        return asdict(self) | {"difference": self.difference, "test": test}


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """How far the tables of one dataset are repeated."""

    dataset: str
    study: str
    model: str
    image_px: int
    n_epochs: int
    n_blocks: int
    n_train: int
    n_val: int
    n_recipes: int
    n_ended: int
    rows: tuple[ReproducedRow, ...]
    table_notes: Mapping[int, tuple[str, ...]]
    """What is doubtful of a whole table."""
    finalisation: Literal["confirm", "test", "done"] | None
    """Stage of the study's finalisation; None where it has none."""

    @property
    def next_steps(self) -> tuple[tuple[str, str], ...]:
        """Return the commands that are left, each with what it is for."""
        launch = (f"nbtl-search launch {self.study}", "train the recipes that wait")
        purpose = "test figures, for table 6"
        if self.finalisation is not None:
            purpose = "go on with the final runs"
        final = (f"nbtl-search finalize {self.study}", purpose)
        if self.finalisation == "done":
            return ()
        return (launch, final) if self.n_ended < self.n_recipes else (final,)

    def plain(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {
            "table_notes": {str(table): list(text) for table, text in self.table_notes.items()},
            "rows": [row.plain() for row in self.rows],
            "next_steps": [command for command, _ in self.next_steps],
        }


def reproduction_of(
    spec: StudySpec, trials: Sequence[TrialRecord], verdict: Verdict | None, *, dataset: str
) -> Reproduction:
    """Put the paper's rows for a dataset beside the trials of a study of its recipes.

    Args:
        spec: of the study, with its facts.
        trials: those that have started.
        verdict: of the study's finalisation, if it has one.
        dataset: the paper's, by our name.

    Raises:
        SpecError: the paper has no such dataset.
    """
    facts = spec.facts
    assert facts is not None, "create() wants them"  # noqa: S101
    recipes = paper_recipes(dataset)
    names = {(row.table, row.label): recipe.name for recipe in recipes for row in recipe.rows}
    ours = {recipe.name: recipe.dials for recipe in spec.search.known}
    known = {recipe.name for recipe in recipes if ours.get(recipe.name) == dict(recipe.dials)}
    begun = {trial.name: trial for trial in trials if trial.name in known}
    rows = [
        _row(row, names.get((row.table, row.label)), known=known, begun=begun, verdict=verdict)
        for row in paper_rows(dataset)
    ]
    return Reproduction(
        dataset=dataset,
        study=spec.name,
        model=spec.model.name,
        image_px=spec.data.image_px,
        n_epochs=spec.train.epochs,
        n_blocks=facts.n_blocks,
        n_train=facts.n_train,
        n_val=facts.n_val,
        n_recipes=len(known),
        n_ended=sum(trial.state in TERMINAL for trial in begun.values()),
        rows=(*rows, *_winner(rows, verdict)),
        table_notes=table_notes(dataset),
        finalisation=None if verdict is None else verdict.stage,
    )


def _row(
    row: PaperRow,
    recipe: str | None,
    *,
    known: set[str],
    begun: Mapping[str, TrialRecord],
    verdict: Verdict | None,
) -> ReproducedRow:
    trial = None if recipe is None else begun.get(recipe)
    is_complete = trial is not None and trial.state == "complete"
    return ReproducedRow(
        table=row.table,
        label=row.label,
        setting=row.setting,
        paper_top1=row.top1,
        paper_std=row.std,
        recipe=recipe,
        trial=None if trial is None else trial.number,
        state=_state(recipe, trial, known),
        cause=None if trial is None else trial.cause,
        n_epochs=0 if trial is None else trial.n_epochs,
        val_top1=trial.value if trial is not None and is_complete else None,
        best_epoch=trial.best_epoch if trial is not None and is_complete else None,
        test=None if row.table != _FINAL_TABLE else _test(row, trial, verdict),
        suspect=row.suspect,
        assumed=row.assumed,
    )


def _state(recipe: str | None, trial: TrialRecord | None, known: set[str]) -> str:
    if recipe is None:
        return ""
    if recipe not in known:
        return "absent"
    return "waiting" if trial is None else trial.state


def _test(row: PaperRow, trial: TrialRecord | None, verdict: Verdict | None) -> Summary | None:
    """Return what the final runs say of a row: the ensemble of the winner, or a trial's mean."""
    if row.slug == "table6-ensemble":
        entry = _winning(verdict)
        ensemble = None if entry is None else entry.ensemble_top1
        return None if ensemble is None else Summary(n=1, mean=ensemble, std=None)
    if verdict is None or trial is None:
        return None
    entry = next((entry for entry in verdict.entries if entry.trials == (trial.number,)), None)
    return None if entry is None or entry.single.n == 0 else entry.single


def _winning(verdict: Verdict | None) -> Entry | None:
    return None if verdict is None else verdict.winning


def _winner(rows: Sequence[ReproducedRow], verdict: Verdict | None) -> list[ReproducedRow]:
    """Return a row for our winner, where table 6 has none for its recipe."""
    entry = _winning(verdict)
    shown = {(row.trial,) for row in rows if row.table == _FINAL_TABLE}
    if entry is None or entry.trials in shown:
        return []
    same = next((row for row in rows if (row.trial,) == entry.trials), None)
    return [
        ReproducedRow(
            table=_FINAL_TABLE,
            label=f"our winner: {entry.name}",
            setting="" if same is None else same.setting,
            paper_top1=None,
            paper_std=None,
            recipe=entry.name,
            trial=entry.trial,
            state="complete",
            cause=None,
            n_epochs=0 if same is None else same.n_epochs,
            val_top1=None if same is None else same.val_top1,
            best_epoch=None if same is None else same.best_epoch,
            test=entry.single if entry.single.n else None,
            suspect=(),
            assumed=(),
        )
    ]


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
    for one in _tables(reproduction, notes):
        parts += ["", Text(one.title, style="bold"), table.terminal(one)]
    parts += ["", *(Text(line, style="dim") for line in [_LEGEND, *notes.lines()])]
    steps = reproduction.next_steps
    width = max((len(command) for command, _ in steps), default=0)
    parts += [Text(f"next: {command:{width}}  {purpose}") for command, purpose in steps]
    return Group(*parts)


def markdown(reproduction: Reproduction) -> str:
    """Return the tables as Markdown."""
    notes = _Notes(reproduction)
    parts = ["\n".join(f"* {escaping.markdown(line)}" for line in header(reproduction))]
    for one in _tables(reproduction, notes):
        parts += [f"## {escaping.markdown(one.title)}", table.markdown(one)]
    parts.append("\n".join(f"* {escaping.markdown(line)}" for line in [_LEGEND, *notes.lines()]))
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
        for key, texts in self._of_tables.items():
            for text in texts:
                yield f"table {key}: {text}"

    def _mark(self, text: str) -> str:
        return f"{'?' if text in self._suspect else ''}{self._numbers[text]}"


def _title(reproduction: Reproduction, table: int) -> str:
    title = f"Table {table}. {paper_tables()[f'table{table}']['title']}"
    runs = [row.test.n for row in reproduction.rows if row.test and row.table == table]
    if runs:
        title += (
            f" (test: ours, {max(runs)} runs, single crop, trained on train + validation; diff: of "
            "test where there is one)"
        )
    return title


def _tables(reproduction: Reproduction, notes: _Notes) -> Iterator[Table]:
    for key in sorted({row.table for row in reproduction.rows}):
        rows = [row for row in reproduction.rows if row.table == key]
        test = [Column(title="test", show=_shown("test"))] if any(row.test for row in rows) else []
        columns = (
            Column(title="row", show=_shown("row"), is_text=True),
            Column(title="setting", show=_shown("setting"), is_text=True),
            Column(title="paper", show=_shown("paper")),
            Column(title="ours", show=_shown("ours")),
            *test,
            Column(title="diff", show=_shown("diff")),
            Column(title="notes", show=_shown("notes"), is_text=True),
        )
        yield Table(
            name=f"table{key}",
            title=_title(reproduction, key),
            rows=tuple(_cells(row, reproduction.n_epochs, notes) for row in rows),
            columns=columns,
        )


def _shown(key: str) -> Callable[[Row], str]:
    return lambda row: str(row[key])


def _cells(row: ReproducedRow, n_epochs: int, notes: _Notes) -> Row:
    return {
        "row": row.label,
        "setting": row.setting,
        "paper": "" if row.paper_top1 is None else figure(row.paper_top1, row.paper_std),
        "ours": _ours(row, n_epochs),
        "test": _test_cell(row),
        "diff": "" if row.difference is None else f"{row.difference:+.2f}",
        "notes": notes.marks(row),
    }


def _ours(row: ReproducedRow, n_epochs: int) -> str:
    if row.val_top1 is not None:
        return f"{row.val_top1:.2f} ({row.best_epoch})"
    if row.cause is not None:
        return f"{row.state}: {row.cause}"
    return f"{row.state} {row.n_epochs}/{n_epochs}" if row.n_epochs else row.state


def _test_cell(row: ReproducedRow) -> str:
    if row.test is None or row.test.mean is None:
        return ""
    std = "" if row.test.std is None else f" ± {row.test.std:.2f}"
    return f"{row.test.mean:.2f}{std}"
