"""The paper's tables 2-6 beside what a study of the same recipes has measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from nbtl_search.reports.standing import ENDED
from nbtl_search.spec import StudySpec
from nbtl_search.spec.paper import PaperRow, paper_rows, table_notes
from nbtl_search.spec.paper_study import paper_recipes
from nbtl_search.study.contest import Summary
from nbtl_search.study.records import TrialRecord
from nbtl_search.study.verdict import Entry, Verdict

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
        return asdict(self) | {"difference": self.difference}


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
        n_ended=sum(trial.state in ENDED for trial in begun.values()),
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
    entry = next((entry for entry in verdict.entries if entry.trial == trial.number), None)
    return None if entry is None or entry.single.n == 0 else entry.single


def _winning(verdict: Verdict | None) -> Entry | None:
    if verdict is None:
        return None
    return next((entry for entry in verdict.entries if entry.trial == verdict.winner), None)


def _winner(rows: Sequence[ReproducedRow], verdict: Verdict | None) -> list[ReproducedRow]:
    """Return a row for our winner, where table 6 has none for its recipe."""
    entry = _winning(verdict)
    shown = {row.trial for row in rows if row.table == _FINAL_TABLE}
    if entry is None or entry.trial in shown:
        return []
    same = next((row for row in rows if row.trial == entry.trial), None)
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
