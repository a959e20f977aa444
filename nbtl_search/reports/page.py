"""The page of a report: one HTML file that needs no network and no other file.

What it says stands in `templates/page.html.j2`; here are the values that it says it of.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from nbtl_search import escaping
from nbtl_search.advice import conclude
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.reports import tables
from nbtl_search.reports.ablation import sentences
from nbtl_search.reports.content import Content
from nbtl_search.reports.figures import Figure, figures_of
from nbtl_search.reports.prose import mean_std, verdict_sentences
from nbtl_search.reports.table import Table, duration
from nbtl_search.spec import Pruning, write_toml
from nbtl_search.spec.verdict import Interval, Verdict

N_BEST: Final = 10
_OF_PAPER: Final = ("rate", "low-layers", "l2sp", "optimal")
_TITLES: Final = {
    "result": "Result",
    "searched": "What was searched",
    "fit": "Do the weights fit?",
    "history": "The search",
    "curves": "Learning curves",
    "importance": "Which dials mattered",
    "ablation": "Which of them are needed",
    "non-binary": "Not binary: the paper's figures for this study",
    "cost": "Cost",
    "provenance": "Provenance",
    "paper": "Beside the paper",
}


def page(content: Content) -> str:
    """Return the whole page.

    Its policy lets the browser open no connection, and run no script but the two whose digests
    it names: text that slipped through unescaped could still do nothing.
    """
    figures = {figure.name: figure for figure in figures_of(content)}
    scripts = [get_plotlyjs(), _resource("page.js")] if figures else []
    made = (
        _environment()
        .get_template("page.html.j2")
        .render(
            content=content,
            spec=content.spec,
            facts=content.facts,
            verdict=content.verdict,
            diagnosis=content.diagnosis,
            provenance=content.provenance,
            titles=_titles(content, figures),
            tables=_tables(content),
            figures=figures,
            paper_figures=_OF_PAPER,
            data={name: _data(figure) for name, figure in figures.items()},
            policy=_policy(scripts),
            style=_resource("page.css"),
            scripts=scripts,
            toml=write_toml(content.spec),
            **_said(content),
        )
    )
    return f"{made}\n"


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("nbtl_search.reports", "templates"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["one_line"] = lambda text: " ".join(text.split())
    return made


def _visible(value: Any) -> Any:
    """Return what Jinja escapes next: entities alone would leave control characters as they are."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return escaping.visible(value) if is_text else value


def _titles(content: Content, figures: Mapping[str, Figure]) -> dict[str, str]:
    """Return the sections that have anything to say, in their order."""
    missing = {
        "fit": content.diagnosis is None and content.spec.advice is None,
        "curves": "curves" not in figures,
        "ablation": content.ablation is None,
        "non-binary": not any(name in figures for name in _OF_PAPER),
        "paper": not tables.paper(content, whole=False).rows,
    }
    return {key: title for key, title in _TITLES.items() if not missing.get(key)}


def _tables(content: Content) -> dict[str, Table]:
    title = "The best recipes and the default, each by its first trial"
    best = replace(tables.trials(content, _best(content)), name="best", title=title)
    return {
        "final": tables.final(content),
        "contenders": tables.contenders(content),
        "runs": tables.runs(content),
        "readings": tables.readings(content),
        "space": tables.searched(content),
        "best": best,
        "measures": tables.measures(content),
        "ablation": tables.ablation(content),
        "cost": tables.cost(content),
        "audit": tables.audits(content),
        "paper": tables.paper(content, whole=False),
        "paper_whole": replace(tables.paper(content), name="paper-whole"),
    }


def _best(content: Content) -> Sequence[TrialRecord]:
    best = [trial for trial, _ in content.recommendation.ranked[:N_BEST]]
    default = content.default
    return [*best, default] if default is not None and default not in best else best


def _said(content: Content) -> dict[str, Any]:
    """Return what the template says in words that depend on more than one value."""
    verdict, diagnosis = content.verdict, content.diagnosis
    runs = () if verdict is None else verdict.runs
    ablation = content.ablation
    ablated = () if ablation is None else ablation.runs
    seconds = content.totals.seconds_spent + sum(run.seconds for run in runs)
    seconds += sum(run.seconds for run in ablated)
    return {
        "sentences": verdict_sentences(content),
        "key_numbers": [*_key_numbers(content)],
        "final_remark": "" if verdict is None else _final_remark(verdict),
        "n_final_ended": sum(run.state == "complete" for run in runs),
        "early_stopping": _early_stopping(content.spec.search.pruning),
        "trial_counts": _counts(content),
        "evidence": () if diagnosis is None else conclude(diagnosis).evidence,
        "failures": [trial for trial in content.trials if trial.cause],
        "spent": duration(seconds),
        "seeds": _seeds(content),
        "ablation_says": () if ablation is None else tuple(sentences(ablation)),
    }


def _key_numbers(content: Content) -> Iterator[tuple[str, str]]:
    verdict = content.verdict
    if verdict is not None and verdict.gain is not None and verdict.entries:
        default, winner = verdict.entries[0], verdict.entries[-1]
        yield f"{mean_std(winner.single)} %", "winner, test top-1"
        yield f"{mean_std(default.single)} %", "default, test top-1"
        yield f"{verdict.gain.mean:+.2f}", _bounds(verdict.gain)
        if winner.ensemble_top1 is not None:
            yield f"{winner.ensemble_top1:.2f} %", f"ensemble of {winner.single.n}, ten crops"
        return
    found = content.recommendation
    for trial, what in ((found.best, "best found"), (found.default, "default")):
        value = found.value_of(trial)
        if value is not None:
            runs = "1 run" if value.n == 1 else f"{value.n} runs"
            yield f"{value.mean:.2f} %", f"{what}, validation top-1, {runs}"
    if found.gain is not None:
        yield f"{found.gain.mean:+.2f}", _bounds(found.gain)


def _bounds(gain: Interval) -> str:
    return f"points, {gain.confidence:.0%} interval {gain.low:+.2f} to {gain.high:+.2f}"


def _final_remark(verdict: Verdict) -> str:
    n = len(verdict.readings)
    read = f"The test images were read {'once' if n == 1 else f'{n} times'}."
    gains = []
    if verdict.ten_crop_gain is not None:
        gains.append(f"{verdict.ten_crop_gain.mean:+.2f} with ten crops")
    if verdict.ensemble_gain is not None:
        gains.append(f"{verdict.ensemble_gain:+.2f} of the ensembles")
    more = f" Winner minus default is also {' and '.join(gains)}." if gains else ""
    return f"{read}{more}" if n else more.strip()


def _counts(content: Content) -> str:
    totals = content.totals
    named = ("complete", "pruned", "failed", "running", "paused", "waiting")
    counts = [f"{getattr(totals, key)} {key}" for key in named if getattr(totals, key)]
    return f"{', '.join(counts)} of {totals.n_trials}; the study is {totals.state}"


def _early_stopping(pruning: Pruning) -> str:
    if not pruning.rungs:
        return "none"
    rungs = " and ".join(f"{rung:.0%}" for rung in pruning.rungs)
    return (
        f"trials pause at {rungs} of the epochs, one in {pruning.reduction:g} goes on "
        "(successive halving)"
    )


def _seeds(content: Content) -> str:
    spec = content.spec
    said = f"sampler {spec.search.seed}, training {spec.train.seed}, split {spec.data.split_seed}"
    runs = () if content.verdict is None else content.verdict.runs
    for stage in ("confirm", "test"):
        seeds = sorted({run.seed for run in runs if run.stage == stage})
        said += f"; final runs, {stage}: {', '.join(map(str, seeds))}" if seeds else ""
    if content.ablation is not None:
        seeds = sorted({run.seed for run in content.ablation.runs})
        said += f"; ablation: {', '.join(map(str, seeds))}"
    return said


def _policy(scripts: Sequence[str]) -> str:
    allowed = " ".join(f"'{_digest(script)}'" for script in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )


def _data(figure: Figure) -> str:
    """Return what a figure is drawn from, without its title, which the page sets itself."""
    figure.plot.update_layout(title=None, margin={"l": 56, "r": 12, "t": 16, "b": 48})
    return escaping.script_json(figure.plot.to_json(validate=False))


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _resource(name: str) -> str:
    return files("nbtl_search.reports").joinpath("templates", name).read_text("utf-8")
