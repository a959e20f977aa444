"""Tables of `status` and `list` in a terminal: counts, best trial, trials, workers, time left.

The tables of trials, workers and studies fit 80 columns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC
from typing import Any, Final, TypedDict

from rich.console import Group, RenderableType
from rich.text import Text

from nbtl_search import escaping
from nbtl_search.ledger import records
from nbtl_search.ledger.recommendation import Recommendation, recommend
from nbtl_search.ledger.records import TrialRecord, WorkerRecord, ranked
from nbtl_search.reports.cost import time_left_s
from nbtl_search.reports.table import (
    Cell,
    Column,
    Row,
    Table,
    count,
    duration,
    number,
    terminal,
    text,
)
from nbtl_search.spec.verdict import Estimate, Interval
from nbtl_search.study import ablations, stages
from nbtl_search.study.store import Study, StudySummary

MAX_TRIALS: Final = 30
_MAX_WORKERS: Final = 8
_N_BEST: Final = 10
_N_REASONS: Final = 4
_N_NAMED: Final = 6
_LONGEST: Final = 300
_BAR: Final = 60
_COUNTS: Final = ("complete", "pruned", "failed", "running", "paused", "waiting")
_LEGEND: Final = (
    "new: layers reinitialised; lr: of the blocks from `low` up; head, low: their rates x lr; "
    "L2-SP: blocks pulled to their old weights @ strength; L2: pull to zero elsewhere"
)
_WANTED: Final = {"run": "run", "pause": "paused", "stop": "stopped"}
_STYLES: Final = {
    "running": "cyan",
    "complete": "green",
    "finished": "green",
    "pruned": "dim",
    "failed": "red",
    "stopped": "red",
    "paused": "yellow",
    "idle": "yellow",
}


class Worth(TypedDict):
    """What a recipe gives on average over seeds, in percent, with its 95 % interval.

    None where it has not run to its end.
    """

    value: float | None
    low: float | None
    high: float | None
    n_runs: int


class Best(Worth):
    """The recommended recipe, by the first trial that had it."""

    trial: int
    name: str
    params: dict[str, Any]


class Default(Worth):
    """The default recipe; its trial is None until it has started."""

    trial: int | None


class FinalRuns(TypedDict):
    """How far the latest finalisation or ablation is."""

    stage: str
    n_done: int
    n_runs: int


class Queue(TypedDict):
    """The study's tasks in a cluster's queue; None where the queue did not answer."""

    tasks: list[dict[str, str]] | None


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
    paused: int
    """Trials at a rung, which may still be promoted."""
    waiting: int
    failed: int
    best: Best | None
    default: Default
    gain: dict[str, Any] | None
    """Of the recommended recipe over the default: n, mean, low, high, confidence."""
    image_points: float
    n_val: int
    n_epochs: int
    epochs_spent: int
    seconds_spent: float
    eta_s: float | None
    workers: tuple[WorkerRecord, ...]
    final: FinalRuns | None
    """None where the study was never finalised."""
    ablation: FinalRuns | None = None
    """None where no recipe of the study was ablated."""
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
    # Final runs and ablations compare runs of a few recipes in tables of their own.
    found = recommend(trials if study.stage is None else (), n_images=n_val)
    return StatusReport(
        study=study.name,
        measure="test top-1" if study.stage == "test" else "validation top-1",
        **asdict(totals),
        best=_best(found),
        default=_default(found),
        gain=None if found.gain is None else found.gain.plain(),
        image_points=100 / n_val,
        n_val=n_val,
        n_epochs=spec.train.epochs,
        eta_s=time_left_s(
            totals, trials, n_workers=len(workers), n_epochs=spec.train.epochs, budget=spec.budget
        ),
        workers=tuple(workers),
        final=_final(study),
        ablation=_ablation(study),
    )


def render(
    report: StatusReport, trials: Sequence[TrialRecord], *, show_all: bool = False
) -> RenderableType:
    """Return what `status` shows in a terminal of 80 columns.

    Args:
        report: where the study stands.
        trials: its trials.
        show_all: also those beyond the first `MAX_TRIALS` worth a look.
    """
    parts: list[RenderableType] = [*_header(report), *_comparison(report), *_finalised(report)]
    if trials:
        best = None if report.best is None else report.best["trial"]
        drawn = _trials(
            trials,
            n_epochs=report.n_epochs,
            best=best,
            default=report.default["trial"],
            show_all=show_all,
        )
        parts += ["", drawn, *_reasons(trials, show_all=show_all)]
    if report.workers:
        parts += ["", _workers(report.workers, show_all=show_all)]
    if report.queue is not None:
        parts += ["", *_queue(report.queue["tasks"])]
    return Group(*parts)


def render_list(summaries: Sequence[StudySummary]) -> RenderableType:
    """Return what `list` shows: one line per study."""
    if not summaries:
        return Text("no studies yet; make one with: nbtl-search create")
    return _studies(summaries)


def _best(found: Recommendation) -> Best | None:
    if found.best is None:
        return None
    trial, value = found.ranked[0]
    return {
        "trial": trial.number,
        "name": trial.name,
        **_worth(value),
        "params": trial.dials.plain(),
    }


def _default(found: Recommendation) -> Default:
    trial = found.default
    return {
        "trial": None if trial is None else trial.number,
        **_worth(found.value_of(trial)),
    }


def _worth(value: Estimate | None) -> Worth:
    if value is None:
        return {"value": None, "low": None, "high": None, "n_runs": 0}
    return {"value": value.mean, "low": value.low, "high": value.high, "n_runs": value.n}


def _header(report: StatusReport) -> list[RenderableType]:
    n_ended = report.complete + report.pruned + report.failed
    line = Text.assemble(
        ("study ", "dim"),
        (escaping.terminal(report.study), "bold"),
        ": ",
        _state(report.state),
        f", {n_ended} of {report.n_trials} trials ended",
    )
    n_done = round(_BAR * min(1.0, (n_ended + report.paused) / report.n_trials))
    bar = Text.assemble(("█" * n_done, "green"), ("░" * (_BAR - n_done), "dim"))
    counts = [f"{getattr(report, name)} {name}" for name in _COUNTS if getattr(report, name)]
    spent = f"{report.epochs_spent} epochs, {duration(report.seconds_spent)} of training"
    left = "" if not report.eta_s else f", about {duration(report.eta_s)} to go"
    return [line, bar, Text(", ".join(counts)), Text(f"{spent}{left}")]


def _comparison(report: StatusReport) -> list[RenderableType]:
    """Return the best trial against the default one, with ties called ties."""
    best, default = report.best, report.default
    if best is None:
        return []
    name = f" ({escaping.terminal(best['name'])})" if best["name"] else ""
    lines = [Text.assemble("best     ", (_value(best), "bold"), f"  trial {best['trial']}{name}")]
    if default["value"] is not None:
        lines.append(Text(f"default  {_value(default)}  trial {default['trial']}"))
    if report.gain is not None:
        lines.append(Text(f"gain     {Interval.parse(report.gain).describe()}"))
    worth = f"one of {report.n_val} images is {report.image_points:.2f} points"
    how = f"{report.measure}, mean over seeds, 95 % interval; {worth}"
    return [*lines, Text(how, style="dim")]


def _value(worth: Worth) -> str:
    bounds = {key: worth[key] for key in ("low", "high")}
    return Estimate.parse({"n": worth["n_runs"], "mean": worth["value"], **bounds}).describe()


def _final(study: Study) -> FinalRuns | None:
    row = stages.latest_round(study)
    if row is None:
        return None
    stage = stages.stage_of(study, row)
    n_done, n_runs = stages.counts(stage)
    return {"stage": stage.stage or "", "n_done": n_done, "n_runs": n_runs}


def _ablation(study: Study) -> FinalRuns | None:
    row = ablations.latest_round(study)
    if row is None:
        return None
    n_done, n_runs = stages.counts(ablations.stage_of(study, row))
    return {"stage": "ablation", "n_done": n_done, "n_runs": n_runs}


def _finalised(report: StatusReport) -> list[RenderableType]:
    """Return a line about the final runs and one about the ablation, where there are any."""
    lines = []
    for found, told, verb in (
        (report.final, "final    stage '{stage}'", "finalize"),
        (report.ablation, "ablation", "ablate"),
    ):
        if found is not None:
            ended = f"{told.format(**found)}: {found['n_done']} of {found['n_runs']} runs ended"
            lines.append(f"{ended}; nbtl-search {verb} {escaping.terminal(report.study)}")
    return list(map(Text, lines))


def worth_a_look(
    trials: Sequence[TrialRecord], *, default: int | None, best: int | None = None
) -> list[TrialRecord]:
    """Return at most `MAX_TRIALS`, by number: default, recommended, best, open ones, latest."""
    highest = ranked(trials)[:_N_BEST]
    is_open = [trial for trial in trials if trial.finished_at is None]
    compared = [trial for trial in trials if trial.number in {default, best}]
    wanted = [*compared, *highest, *reversed(is_open), *reversed(trials)]
    kept = set(list(dict.fromkeys(trial.number for trial in wanted))[:MAX_TRIALS])
    return [trial for trial in trials if trial.number in kept]


def _trials(
    trials: Sequence[TrialRecord],
    *,
    n_epochs: int,
    best: int | None,
    default: int | None,
    show_all: bool,
) -> RenderableType:
    """Return a line per trial with its dials; of many trials only those worth a look."""
    shown = list(trials) if show_all else worth_a_look(trials, default=default, best=best)

    def emphasis(row: Row) -> str:
        return "bold" if row["trial"] == best else "dim" if row["state"] == "pruned" else ""

    drawn = terminal(trial_table(shown, n_epochs=n_epochs), emphasis=emphasis)
    legend = Text(_LEGEND, style="dim")
    if len(shown) == len(trials):
        return Group(drawn, legend)
    more = Text(f"{len(trials) - len(shown)} more trials: --all", style="dim")
    return Group(drawn, more, legend)


def trial_table(trials: Sequence[TrialRecord], *, n_epochs: int) -> Table:
    """Return a row per trial, as narrow as it can be.

    Args:
        trials: of one study.
        n_epochs: length of the schedule.
    """
    rows: list[Row] = [
        {
            "trial": trial.number,
            "name": trial.name,
            "state": trial.state,
            "why": trial.cause if trial.state in {"pruned", "failed"} else None,
            "top1": trial.value if trial.value is not None else trial.last_top1,
            "epochs": f"{trial.n_epochs}/{n_epochs}",
            **trial.dials.model_dump(),
        }
        for trial in trials
    ]
    columns = (
        count("#", "trial"),
        text("name", "name"),
        Column(
            title="state",
            show=lambda row: str(row["why"] or row["state"]),
            is_text=True,
            is_whole=True,
            style=lambda row: _STYLES.get(str(row["state"]), ""),
        ),
        number("top-1", "top1", none=""),
        count("epoch", "epochs"),
        count("new", "reinit_layers"),
        _dial("lr", lambda row: _short(row["lr_high"])),
        _dial("head", lambda row: _short(row["lr_head_ratio"])),
        _dial("low", lambda row: _of(row, "n_low", "x", "lr_low_ratio")),
        _dial("L2-SP", lambda row: _of(row, "n_l2sp", "@", "alpha")),
        _dial("L2", lambda row: _short(row["beta"])),
    )
    return Table(name="trials", title="Trials", rows=tuple(rows), columns=columns)


def _reasons(trials: Sequence[TrialRecord], *, show_all: bool) -> list[RenderableType]:
    """Return why trials ended that say it: each message once, with the trials it is of."""
    found: dict[tuple[str, str], list[int]] = {}
    for trial in trials:
        if trial.cause and trial.message:
            found.setdefault((trial.cause, trial.message), []).append(trial.number)
    # Of many the most frequent: where the space is at fault, its message comes again and again.
    reasons = sorted(found.items(), key=lambda reason: -len(reason[1]))
    shown = reasons if show_all else reasons[:_N_REASONS]
    lines = []
    for (cause, message), numbers in shown:
        said = escaping.terminal(message[:_LONGEST])
        lines.append(Text.assemble((cause, "bold"), f", {_named(numbers)}: {said}"))
    if len(shown) < len(reasons):
        lines.append(Text(f"{len(reasons) - len(shown)} more reasons: --all", style="dim"))
    return ["", *lines] if lines else []


def _named(numbers: Sequence[int]) -> str:
    named = ", ".join(map(str, numbers[:_N_NAMED]))
    more = f" and {len(numbers) - _N_NAMED} more" if len(numbers) > _N_NAMED else ""
    return f"trial{'s' if len(numbers) > 1 else ''} {named}{more}"


def _dial(title: str, show: Callable[[Row], str]) -> Column:
    return Column(title=title, show=show, is_text=True, is_whole=True)


def _of(row: Row, count: str, sign: str, strength: str) -> str:
    return f"{row[count]}{sign}{_short(row[strength])}" if row[count] else ""


def _workers(workers: Sequence[WorkerRecord], *, show_all: bool) -> RenderableType:
    """Return a line per worker; the first few of many."""
    shown = workers if show_all else workers[:_MAX_WORKERS]
    rows: tuple[Row, ...] = tuple(
        {
            "worker": worker.worker,
            "device": worker.device,
            "state": worker.state,
            "trial": "" if worker.trial_number is None else worker.trial_number,
            "seen": f"{max(0.0, worker.seen_s):.0f} s ago",
        }
        for worker in shown
    )
    columns = (
        text("worker", "worker"),
        text("device", "device"),
        text("does", "state"),
        text("trial", "trial"),
        text("seen", "seen"),
    )
    drawn = terminal(Table(name="workers", title="Workers", rows=rows, columns=columns))
    if len(shown) == len(workers):
        return drawn
    return Group(drawn, Text(f"{len(workers) - len(shown)} more workers: --all", style="dim"))


def _queue(tasks: Sequence[Mapping[str, str]] | None) -> list[RenderableType]:
    """Return a line per state of the tasks in a cluster's queue, with nodes or reasons."""
    if tasks is None:
        return [Text("queue    unknown: squeue does not answer", style="yellow")]
    if not tasks:
        return [Text("queue    no tasks; nbtl-search launch STUDY --slurm submits some")]
    lines: list[RenderableType] = []
    for state in sorted({task["state"] for task in tasks}):
        there = [task for task in tasks if task["state"] == state]
        where = sorted({task["node"] or task["reason"] for task in there})
        line = f"queue    {len(there)} {state.lower()}: {', '.join(map(escaping.terminal, where))}"
        lines.append(Text(line))
    return lines


def _studies(summaries: Sequence[StudySummary]) -> RenderableType:
    rows: tuple[Row, ...] = tuple(
        {
            "study": summary.name,
            "wanted": _WANTED.get(summary.desired, summary.desired),
            "ended": f"{summary.n_finished}/{summary.n_trials}",
            "created_at": f"{summary.created_at.astimezone(UTC):%Y-%m-%d %H:%M}",
        }
        for summary in summaries
    )
    columns = (
        text("study", "study"),
        Column(
            title="wanted",
            show=lambda row: str(row["wanted"]),
            is_text=True,
            style=lambda row: _STYLES.get(str(row["wanted"]), ""),
        ),
        text("trials ended", "ended"),
        text("created (UTC)", "created_at"),
    )
    return terminal(Table(name="studies", title="Studies", rows=rows, columns=columns))


def _state(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, ""))


def _short(value: Cell) -> str:
    """Return a number with two significant digits, in at most 6 characters."""
    value = float(value or 0)
    if value == 0:
        return "0"
    if 0.01 <= value < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
