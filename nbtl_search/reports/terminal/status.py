"""Where a study stands: counts, the best trial against the default one, and when it may end."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypedDict

from rich.console import Group, RenderableType
from rich.text import Text

from nbtl_search.ledger import records
from nbtl_search.ledger.records import TrialRecord, WorkerRecord, best_of, default_of
from nbtl_search.reports.comparison import Gain, gain_of, time_left_s
from nbtl_search.reports.terminal import tables
from nbtl_search.reports.terminal.tables import clean, span, state_text
from nbtl_search.study import finals
from nbtl_search.study.store import Study, StudySummary

_BAR: Final = 60
_COUNTS: Final = ("complete", "pruned", "failed", "running", "waiting")


class Best(TypedDict):
    """The complete trial with the highest accuracy."""

    trial: int
    name: str
    value: float
    params: dict[str, Any]


class FinalRuns(TypedDict):
    """How far the latest finalisation is."""

    stage: str
    n_done: int
    n_runs: int


class Queue(TypedDict):
    """The study's tasks in a cluster's queue; None where the queue did not answer."""

    tasks: list[dict[str, str]] | None


class Default(TypedDict):
    """The trial of the default recipe; its value is None until it is complete."""

    trial: int | None
    value: float | None


@dataclass(frozen=True, kw_only=True)
class StatusReport:
    """Where a study stands. Values are accuracies in percent, of the kind that `measure` names.

    `image_points` is what one validation image is worth, in points; `eta_s` is None where it
    cannot be told.
    """

    study: str
    state: str
    measure: str
    n_trials: int
    complete: int
    pruned: int
    running: int
    waiting: int
    failed: int
    best: Best | None
    default: Default
    gain: Gain | None
    image_points: float
    n_val: int
    n_epochs: int
    epochs_spent: int
    seconds_spent: float
    eta_s: float | None
    workers: tuple[WorkerRecord, ...]
    final: FinalRuns | None
    """None where the study was never finalised."""
    queue: Queue | None = None
    """None where no job of a cluster was submitted for it."""

    def plain(self) -> dict[str, Any]:
        """Return plain data for JSON; what is not known yet is None."""
        return asdict(self) | {"workers": [asdict(worker) for worker in self.workers]}


def status_of(study: Study, trials: Sequence[TrialRecord] | None = None) -> StatusReport:
    """Read from the ledger where the study stands.

    Args:
        study: any, also one of final runs.
        trials: its trials, where they were read already.

    Raises:
        StorageError: the database refuses or does not answer.
    """
    engine, spec, n_val = study.storage.engine, study.spec, study.facts.n_val
    if study.stage == "test":
        n_val = study.facts.n_test
    if trials is None:
        trials = records.trials(engine, study.id)
    workers = records.workers(engine, study.id)
    totals = records.totals(engine, study.id, n_workers=len(workers))
    best, default = best_of(trials), default_of(trials)
    return StatusReport(
        study=study.name,
        measure="test top-1" if study.stage == "test" else "validation top-1",
        **asdict(totals),
        best=None if best is None else _best(best),
        default=_default(default),
        gain=gain_of(best, default, n_val=n_val),
        image_points=100 / n_val,
        n_val=n_val,
        n_epochs=spec.train.epochs,
        eta_s=time_left_s(
            totals, trials, n_workers=len(workers), n_epochs=spec.train.epochs, budget=spec.budget
        ),
        workers=tuple(workers),
        final=_final(study),
    )


def render(
    report: StatusReport, trials: Sequence[TrialRecord], *, show_all: bool = False
) -> RenderableType:
    """Return what `status` shows in a terminal of 80 columns.

    Args:
        report: where the study stands.
        trials: its trials.
        show_all: also those beyond the first `tables.MAX_TRIALS` worth a look.
    """
    parts: list[RenderableType] = [*_header(report), *_comparison(report), *_finalised(report)]
    if trials:
        best = None if report.best is None else report.best["trial"]
        drawn = tables.of_trials(
            trials,
            n_epochs=report.n_epochs,
            best=best,
            default=report.default["trial"],
            show_all=show_all,
        )
        parts += ["", drawn]
    if report.workers:
        parts += ["", tables.of_workers(report.workers, show_all=show_all)]
    if report.queue is not None:
        parts += ["", *tables.of_queue(report.queue["tasks"])]
    return Group(*parts)


def render_list(summaries: Sequence[StudySummary]) -> RenderableType:
    """Return what `list` shows: one line per study."""
    if not summaries:
        return Text("no studies yet; make one with: nbtl-search create")
    return tables.of_studies(summaries)


def _best(trial: TrialRecord) -> Best:
    assert trial.value is not None, "best_of returns trials with a value"  # noqa: S101
    return {
        "trial": trial.number,
        "name": trial.name,
        "value": trial.value,
        "params": trial.dials.plain(),
    }


def _default(trial: TrialRecord | None) -> Default:
    if trial is None:
        return {"trial": None, "value": None}
    return {"trial": trial.number, "value": trial.value if trial.state == "complete" else None}


def _header(report: StatusReport) -> list[RenderableType]:
    n_ended = report.complete + report.pruned + report.failed
    line = Text.assemble(
        ("study ", "dim"),
        (clean(report.study), "bold"),
        ": ",
        state_text(report.state),
        f", {n_ended} of {report.n_trials} trials ended",
    )
    n_done = round(_BAR * min(1.0, n_ended / report.n_trials))
    bar = Text.assemble(("█" * n_done, "green"), ("░" * (_BAR - n_done), "dim"))
    counts = [f"{getattr(report, name)} {name}" for name in _COUNTS if getattr(report, name)]
    spent = f"{report.epochs_spent} epochs, {span(report.seconds_spent)} of training"
    left = "" if not report.eta_s else f", about {span(report.eta_s)} to go"
    return [line, bar, Text(", ".join(counts)), Text(f"{spent}{left}")]


def _comparison(report: StatusReport) -> list[RenderableType]:
    """Return the best trial against the default one, with ties called ties."""
    best, default = report.best, report.default
    if best is None:
        return []
    name = f" ({clean(best['name'])})" if best["name"] else ""
    value = (f"{best['value']:.2f} %", "bold")
    lines = [Text.assemble("best     ", value, f"  trial {best['trial']}{name}")]
    if default["value"] is not None:
        lines.append(Text(f"default  {default['value']:.2f} %  trial {default['trial']}"))
    worth = f"one of {report.n_val} images is {report.image_points:.2f} points"
    if report.gain is None:
        return [*lines, Text(f"{report.measure}; {worth}", style="dim")]
    return [*lines, Text(f"{report.gain.words()} ({worth})")]


def _final(study: Study) -> FinalRuns | None:
    row = finals.latest_round(study)
    if row is None:
        return None
    stage = finals.stage_of(study, row)
    n_done, n_runs = finals.counts(stage)
    return {"stage": stage.stage or "", "n_done": n_done, "n_runs": n_runs}


def _finalised(report: StatusReport) -> list[RenderableType]:
    """Return the line about the final runs, where there are any."""
    final = report.final
    if final is None:
        return []
    told = f"final    stage {final['stage']!r}: {final['n_done']} of {final['n_runs']} runs ended"
    return [Text(f"{told}; nbtl-search finalize {clean(report.study)}")]
