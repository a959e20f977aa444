"""The sections of the page, each a pure function of the content; '' where there is none.

A report as one HTML page that needs nothing else: no network, no other file.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Final

from plotly.offline import get_plotlyjs

from nbtl_search.ledger.records import ranked
from nbtl_search.reports import fit, markup, tables
from nbtl_search.reports.comparison import gain_of
from nbtl_search.reports.content import Content
from nbtl_search.reports.figures import Figure, figures_of
from nbtl_search.reports.markup import (
    details,
    name,
    paragraph,
    table,
    text,
)
from nbtl_search.reports.prose import mean_std, sentences
from nbtl_search.reports.table import Sheet
from nbtl_search.reports.terminal.tables import span
from nbtl_search.spec import Pruning, write_toml
from nbtl_search.spec.verdict import Verdict

Drawn = Mapping[str, str]
N_BEST: Final = 10
_OF_PAPER: Final = ("rate", "low-layers", "l2sp", "optimal")


def head(content: Content) -> str:
    """Return the title, the verdict and its numbers."""
    found, sure = sentences(content)
    about = content.spec.description
    return "\n".join(
        [
            '<p class="kicker">nbtl-search report</p>',
            f"<h1>{name(content.name)}</h1>",
            f'<p class="about">{name(about)}</p>' if about else "",
            f'<div class="verdict" id="verdict">{paragraph(found)}{paragraph(sure)}</div>',
            _numbers(content),
        ]
    )


def result(content: Content, drawn: Drawn) -> str:  # noqa: ARG001  (all sections are called alike)
    """Return the tables of the final runs, or how to get them."""
    verdict = content.verdict
    if verdict is None:
        command = f"nbtl-search finalize {content.name}"
        return (
            "<p>There are no final runs yet. They repeat the best candidates and the default over "
            "several seeds and read the test images once; start them with "
            f"<code>{text(command)}</code>.</p>"
        )
    final = tables.final(content)
    parts = [table(final)] if final.rows else []
    parts += [_final_remarks(verdict)] if final.rows else [_under_way(verdict)]
    parts += [table(tables.contenders(content))] if verdict.contenders else []
    runs = "".join(table(sheet) for sheet in _some(tables.runs(content), tables.readings(content)))
    return "\n".join([*parts, details("every final run", runs) if runs else ""])


def searched(content: Content, drawn: Drawn) -> str:  # noqa: ARG001
    """Return what was searched: images, network, space, budget, pruning."""
    facts, spec = content.facts, content.spec
    test = f"{facts.n_test} test images" if facts.n_test else "no test images"
    rows = {
        "images": f"{name(spec.data.dataset)}: {facts.n_classes} classes; {facts.n_train} training "
        f"and {facts.n_val} validation images, {test}, {spec.data.image_px} pixels wide",
        "network": f"{name(spec.model.name)}, {facts.n_blocks} blocks and a classifier; "
        f"weights: {name(spec.model.weights)}",
        "training": f"{spec.train.epochs} epochs, batches of {spec.train.batch_size}, "
        f"{text(spec.train.schedule)} schedule",
        "budget": text(spec.budget.in_words()),
        "early stopping": text(_pruning(spec.search.pruning)),
        "tried first": "<br>".join(
            name(known.name) + (f": {name(known.reason)}" if known.reason else "")
            for known in spec.search.known
        ),
        "trials": text(_counts(content)),
    }
    return _list(rows) + table(tables.searched(content))


def history(content: Content, drawn: Drawn) -> str:
    """Return the figure of the search, and the best trials."""
    best = ranked(content.trials)[:N_BEST]
    default = content.default
    shown = [*best, default] if default is not None and default not in best else best
    if not shown:
        return drawn.get("history", "") or paragraph("No trial has any result yet.")
    title = "The best trials and the default: the best epoch of one run each"
    chosen = tables.trials(content, shown)
    listed = Sheet(name="best", title=title, rows=chosen.rows, columns=chosen.columns)
    return drawn.get("history", "") + table(listed) + _failures(content)


def curves(content: Content, drawn: Drawn) -> str:  # noqa: ARG001
    """Return the learning curves."""
    return drawn.get("curves", "")


def importance(content: Content, drawn: Drawn) -> str:
    """Return the importances of the dials, or why there are none."""
    reading = "" if "importances" in drawn else paragraph(content.importances.reading)
    return reading + drawn.get("importances", "") + drawn.get("dials", "")


def paper_figures(content: Content, drawn: Drawn) -> str:  # noqa: ARG001
    """Return the figures of the paper, drawn for this study."""
    return "\n".join(drawn[key] for key in _OF_PAPER if key in drawn)


def cost(content: Content, drawn: Drawn) -> str:  # noqa: ARG001
    """Return the bill."""
    seconds = content.totals.seconds_spent
    seconds += sum(run.seconds for run in content.verdict.runs) if content.verdict else 0.0
    said = f"{span(seconds)} of training and validation, summed over all slots."
    return paragraph(said) + table(tables.cost(content), caption=False)


def provenance(content: Content, drawn: Drawn) -> str:  # noqa: ARG001
    """Return where all this comes from."""
    found, spec = content.provenance, content.spec
    devices = [
        f"{name(one.device)} on {name(one.host)} "
        f"({one.n_workers} worker{'s' if one.n_workers > 1 else ''})"
        for one in found.devices
    ]
    versions = ", ".join(f"{text(key)} {text(value)}" for key, value in found.versions.items())
    rows = {
        "fingerprint": f"<code>{spec.fingerprint()}</code>",
        "seeds": text(_seeds(content)),
        "data, weights": f"<code>{text(content.facts.data_digest)}</code>, "
        f"<code>{text(content.facts.weights_digest)}</code>",
        "trained on": "<br>".join(devices) or "no worker has been seen",
        "packages": f"{versions} (where this report was made)",
        "commit": f"<code>{text(found.commit)}</code>" if found.commit else "an installed package",
        "report made on": f"{text(found.cpu)}, {found.n_cores} cores, {found.memory_gb:.0f} GB; "
        f"{text(found.host)}",
    }
    toml = f'<pre><bdi dir="ltr">{text(write_toml(spec))}</bdi></pre>'
    return _list(rows) + details("the whole specification, as TOML", toml)


def beside_paper(content: Content, drawn: Drawn) -> str:  # noqa: ARG001
    """Return the paper's numbers beside ours; '' for other datasets."""
    sheet = tables.paper(content, whole=False)
    if not sheet.rows:
        return ""
    remark = (
        "The paper (Plested, Shen and Gedeon 2021, arXiv 2107.08585, tables 2 and 6) fine-tunes "
        "Inception-v4 at 299 pixels, four runs each. Another network, another size of image or a "
        "part of the images is another experiment."
    )
    whole = details("all rows of tables 2 to 6", table(tables.paper(content), caption=False))
    return table(sheet) + paragraph(remark, kind="about") + whole


def figure(one: Figure, json: str) -> str:
    """Return a figure with the data it is drawn from."""
    least = f"; min-width: {one.least_width_px}px" if one.least_width_px else ""
    key = text(one.name)
    heading = f"<h3>{text(one.title)}</h3>" if one.has_heading else ""
    return (
        f'<figure id="figure-{key}">{heading}'
        f"<figcaption>{text(one.caption)}</figcaption>"
        f'<div class="box"><div class="plot" data-figure="{key}" role="img" '
        f'aria-label="{text(one.title)}" style="height: {one.height_px}px{least}"></div>'
        f'</div><script type="application/json" id="data-{key}">{markup.script_json(json)}'
        "</script></figure>"
    )


def _numbers(content: Content) -> str:
    cells = "".join(
        f"<div><b>{text(value)}</b><span>{text(what)}</span></div>"
        for value, what in _key_numbers(content)
    )
    return f'<div class="figures">{cells}</div>' if cells else ""


def _key_numbers(content: Content) -> Iterator[tuple[str, str]]:
    verdict = content.verdict
    if verdict is not None and verdict.gain is not None and verdict.entries:
        default, winner = verdict.entries[0], verdict.entries[-1]
        yield f"{mean_std(winner.single)} %", "winner, test top-1"
        yield f"{mean_std(default.single)} %", "default, test top-1"
        yield f"{verdict.gain.mean:+.2f}", _bounds(verdict)
        if winner.ensemble_top1 is not None:
            yield f"{winner.ensemble_top1:.2f} %", f"ensemble of {winner.single.n}, ten crops"
        return
    for trial, what in ((content.best, "best found"), (content.default, "default")):
        if trial is not None and trial.value is not None and trial.state == "complete":
            yield f"{trial.value:.2f} %", f"{what}, validation top-1, one run"
    gain = gain_of(content.best, content.default, n_val=content.facts.n_val)
    if gain is not None:
        yield f"{gain.points:+.2f}", "points, a tie" if gain.is_tie else "points, one run each"


def _bounds(verdict: Verdict) -> str:
    gain = verdict.gain
    if gain is None or gain.low is None or gain.high is None:
        return "points"
    return f"points, {gain.confidence:.0%} interval {gain.low:+.2f} to {gain.high:+.2f}"


def _final_remarks(verdict: Verdict) -> str:
    n = len(verdict.readings)
    read = f"The test images were read {'once' if n == 1 else f'{n} times'}."
    gains = []
    if verdict.ten_crop_gain is not None:
        gains.append(f"{verdict.ten_crop_gain.mean:+.2f} with ten crops")
    if verdict.ensemble_gain is not None:
        gains.append(f"{verdict.ensemble_gain:+.2f} of the ensembles")
    more = f" Winner minus default is also {' and '.join(gains)}." if gains else ""
    return paragraph(f"{read}{more}" if n else more.strip(), kind="about")


def _under_way(verdict: Verdict) -> str:
    n_done = sum(run.state == "complete" for run in verdict.runs)
    return paragraph(
        f"The final runs are under way in the {verdict.stage} stage: {n_done} of "
        f"{len(verdict.runs)} known so far have ended. The study {verdict.study} shows them."
    )


def _failures(content: Content) -> str:
    failed = [trial for trial in content.trials if trial.state == "failed" or trial.message]
    if not failed:
        return ""
    items = "".join(
        f"<li>trial {trial.number}: {name(trial.cause or trial.state)}"
        f"{': ' if trial.message else ''}{name((trial.message or '')[:300])}</li>"
        for trial in failed[:50]
    )
    return details(f"trials that said why they ended ({len(failed)})", f"<ul>{items}</ul>")


def _counts(content: Content) -> str:
    totals = content.totals
    named = ("complete", "pruned", "failed", "running", "waiting")
    counts = [f"{getattr(totals, key)} {key}" for key in named if getattr(totals, key)]
    return f"{', '.join(counts)} of {totals.n_trials}; the study is {totals.state}"


def _pruning(pruning: Pruning) -> str:
    if not pruning.rungs:
        return "none"
    rungs = " and ".join(f"{rung:.0%}" for rung in pruning.rungs)
    return f"one in {pruning.reduction:g} goes on at {rungs} of the epochs (successive halving)"


def _seeds(content: Content) -> str:
    spec = content.spec
    said = f"sampler {spec.search.seed}, training {spec.train.seed}, split {spec.data.split_seed}"
    runs = () if content.verdict is None else content.verdict.runs
    for stage in ("confirm", "test"):
        seeds = sorted({run.seed for run in runs if run.stage == stage})
        said += f"; final runs, {stage}: {', '.join(map(str, seeds))}" if seeds else ""
    return said


def _list(rows: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{text(key)}</dt><dd>{value}</dd>" for key, value in rows.items())
    return f"<dl>{items}</dl>"


def _some(*made: Sheet) -> Sequence[Sheet]:
    return [sheet for sheet in made if sheet.rows]


_Section = Callable[[Content, Drawn], str]
_SECTIONS: Final[dict[str, tuple[str, _Section]]] = {
    "result": ("Result", result),
    "searched": ("What was searched", searched),
    "fit": ("Do the weights fit?", fit.fit),
    "history": ("The search", history),
    "curves": ("Learning curves", curves),
    "importance": ("Which dials mattered", importance),
    "non-binary": ("Not binary: the paper's figures for this study", paper_figures),
    "cost": ("Cost", cost),
    "provenance": ("Provenance", provenance),
    "paper": ("Beside the paper", beside_paper),
}


def page(content: Content) -> str:
    """Return the whole page.

    Its policy lets the browser open no connection, and run no script but the two whose digests
    it names: text that slipped through unescaped could still do nothing.
    """
    drawn = {one.name: figure(one, _json(one)) for one in figures_of(content)}
    made = {key: (title, make(content, drawn)) for key, (title, make) in _SECTIONS.items()}
    made = {key: (title, inner) for key, (title, inner) in made.items() if inner}
    links = "".join(f'<a href="#{key}">{text(title)}</a> ' for key, (title, _) in made.items())
    body = "\n".join(
        f'<section id="{key}"><h2>{text(title)}</h2>\n{inner}</section>'
        for key, (title, inner) in made.items()
    )
    scripts = [get_plotlyjs(), _resource("page.js")] if drawn else []
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en"><head>{_head(content, scripts)}</head>',
            f"<body><main>\n<header>{head(content)}\n<nav>{links}</nav></header>",
            "<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>",
            body,
            f"<footer>{_made(content)}</footer>\n</main>",
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>\n",
        ]
    )


def _head(content: Content, scripts: list[str]) -> str:
    allowed = " ".join(f"'{_digest(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
        f"<title>{text(content.name)}: nbtl-search report</title>"
        f"<style>{_resource('page.css')}</style>"
    )


def _made(content: Content) -> str:
    version = text(content.provenance.versions.get("nbtl-search", ""))
    when = f"{content.made_at:%Y-%m-%d %H:%M} UTC"
    return (
        f"Made {when} by nbtl-search{version and f' {version}'}. Accuracies are top-1 in percent."
    )


def _json(one: Figure) -> str:
    """Return a figure without its title, which the page sets itself."""
    one.plot.update_layout(title=None, margin={"l": 56, "r": 12, "t": 16, "b": 48})
    made: str = one.plot.to_json(validate=False)
    return made


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _resource(name: str) -> str:
    return files("nbtl_search.reports").joinpath("templates", name).read_text("utf-8")
