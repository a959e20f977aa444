"""A study's status, its trials and the list of studies, drawn for a terminal of 80 columns."""

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nbtl_search.report.status import StatusReport
from nbtl_search.study.records import TrialRecord, WorkerRecord
from nbtl_search.study.store import StudySummary

MAX_TRIALS: Final = 30
_MAX_WORKERS: Final = 8
_N_BEST: Final = 10
_BAR: Final = 60
_COLUMNS: Final = (
    "#",
    "name",
    "state",
    "top-1",
    "epoch",
    "new",
    "lr",
    "head",
    "low",
    "L2-SP",
    "L2",
)
_RIGHT: Final = ("#", "top-1", "epoch", "new")
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
_LEGEND: Final = (
    "new: layers reinitialised; lr: of the blocks from `low` up; head, low: their rates x lr; "
    "L2-SP: blocks pulled to their old weights @ strength; L2: pull to zero elsewhere"
)


def render(
    report: StatusReport, trials: Sequence[TrialRecord], *, show_all: bool = False
) -> RenderableType:
    """Return what `status` shows.

    Args:
        report: where the study stands.
        trials: its trials.
        show_all: also those beyond the first `MAX_TRIALS` worth a look.
    """
    parts: list[RenderableType] = [_header(report), *_comparison(report)]
    if trials:
        parts += ["", _trials(report, trials, show_all=show_all)]
        n_hidden = 0 if show_all else len(trials) - len(_worth_a_look(trials, report))
        if n_hidden:
            parts.append(Text(f"{n_hidden} more trials: --all", style="dim"))
        parts.append(Text(_LEGEND, style="dim"))
    if report.workers:
        parts += ["", _workers(report.workers, show_all=show_all)]
    return Group(*parts)


def render_list(summaries: Sequence[StudySummary]) -> RenderableType:
    """Return what `list` shows: one line per study."""
    if not summaries:
        return Text("no studies yet; make one with: nbtl-search create")
    table = _table("study", "wanted", "trials ended", "created (UTC)")
    for summary in summaries:
        table.add_row(
            _clean(summary.name),
            _state({"run": "run", "pause": "paused", "stop": "stopped"}[summary.desired]),
            f"{summary.n_finished}/{summary.n_trials}",
            f"{summary.created_at:%Y-%m-%d %H:%M}",
        )
    return table


def span(seconds: float) -> str:
    """Return a span of time in its two largest units.

    >>> span(3725)
    '1 h 02 min'
    """
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    if days < 2:
        return f"{int(hours)} h {int(minutes % 60):02d} min"
    return f"{int(days)} d {int(hours % 24)} h"


def _header(report: StatusReport) -> RenderableType:
    totals = report.totals
    line = Text.assemble(
        ("study ", "dim"),
        (_clean(report.study), "bold"),
        ": ",
        _state(totals.state),
        f", {report.n_finished} of {totals.n_trials} trials ended",
    )
    counts = ("complete", "pruned", "failed", "running", "waiting")
    shown = [f"{getattr(totals, name)} {name}" for name in counts if getattr(totals, name)]
    spent = f"{totals.epochs_spent} epochs, {span(totals.seconds_spent)} of training"
    left = "" if not report.eta_s else f", about {span(report.eta_s)} to go"
    n_done = round(_BAR * min(1.0, report.n_finished / totals.n_trials))
    bar = Text.assemble(("█" * n_done, "green"), ("░" * (_BAR - n_done), "dim"))
    return Group(line, bar, Text(", ".join(shown)), Text(f"{spent}{left}"))


def _comparison(report: StatusReport) -> list[RenderableType]:
    """Return the best trial against the default one, with ties called ties."""
    if report.best is None or report.best.value is None:
        return []
    best = f"trial {report.best.number}{_named(report.best)}"
    lines: list[RenderableType] = [
        Text.assemble("best     ", (f"{report.best.value:.2f} %", "bold"), f"  {best}")
    ]
    if report.default is not None and report.default_value is not None:
        lines.append(Text(f"default  {report.default_value:.2f} %  trial {report.default.number}"))
    gain, worth = report.gain, f"one of {report.n_val} images is {report.image_points:.2f} points"
    if gain is None:
        return [*lines, Text(f"validation top-1; {worth}", style="dim")]
    text = f"{gain.words()} ({worth})"
    return [*lines, Text(text)]


def _trials(
    report: StatusReport, trials: Sequence[TrialRecord], *, show_all: bool
) -> RenderableType:
    table = _table(*_COLUMNS)
    for column in table.columns:
        column.no_wrap = column.header != "name"
    best = None if report.best is None else report.best.number
    for trial in trials if show_all else _worth_a_look(trials, report):
        style = "bold" if trial.number == best else "dim" if trial.state == "pruned" else ""
        table.add_row(
            str(trial.number),
            _clean(trial.name),
            *_result(trial, report),
            *_dials(trial),
            style=style,
        )
    return table


def _result(trial: TrialRecord, report: StatusReport) -> tuple[Text, str, str]:
    why = trial.cause if trial.state in {"pruned", "failed"} else None
    state = Text(_clean(why or trial.state), style=_STYLES.get(trial.state, ""))
    value = trial.value if trial.value is not None else trial.last_top1
    return state, "" if value is None else f"{value:.2f}", f"{trial.n_epochs}/{report.n_epochs}"


def _dials(trial: TrialRecord) -> tuple[str, ...]:
    dials = trial.dials
    return (
        str(dials.reinit_layers),
        _short(dials.lr_high),
        _short(dials.lr_head_ratio),
        f"{dials.n_low}x{_short(dials.lr_low_ratio)}" if dials.n_low else "",
        f"{dials.n_l2sp}@{_short(dials.alpha)}" if dials.n_l2sp else "",
        _short(dials.beta),
    )


def _worth_a_look(trials: Sequence[TrialRecord], report: StatusReport) -> list[TrialRecord]:
    """Return at most `MAX_TRIALS`: open ones, the best, the default, and the latest."""
    if len(trials) <= MAX_TRIALS:
        return list(trials)
    complete = [trial for trial in trials if trial.state == "complete"]
    best = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))[:_N_BEST]
    default = [] if report.default is None else [report.default]
    is_open = [trial for trial in trials if trial.finished_at is None]
    ranked = [*default, *best, *reversed(is_open), *reversed(trials)]
    kept = list(dict.fromkeys(trial.number for trial in ranked))[:MAX_TRIALS]
    return [trial for trial in trials if trial.number in set(kept)]


def _workers(workers: Sequence[WorkerRecord], *, show_all: bool) -> RenderableType:
    table = _table("worker", "device", "does", "trial", "seen")
    shown = workers if show_all else workers[:_MAX_WORKERS]
    for worker in shown:
        table.add_row(
            _clean(worker.worker),
            _clean(worker.device),
            _clean(worker.state),
            "" if worker.trial_number is None else str(worker.trial_number),
            f"{max(0.0, worker.seen_s):.0f} s ago",
        )
    if len(shown) == len(workers):
        return table
    return Group(table, Text(f"{len(workers) - len(shown)} more workers: --all", style="dim"))


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold", justify="right" if header in _RIGHT else "left")
    return table


def _named(trial: TrialRecord) -> str:
    return f" ({_clean(trial.name)})" if trial.name else ""


def _state(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, ""))


def _short(value: float) -> str:
    """Return a number with two significant digits, in at most 6 characters."""
    if value == 0:
        return "0"
    if 0.01 <= value < 100:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _clean(text: str) -> str:
    """Replace what a terminal would obey instead of show."""
    return "".join(char if char.isprintable() else "?" for char in text)
