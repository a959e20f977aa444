"""A report as one HTML page that needs nothing else: no network, no other file."""

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import Final

from plotly.offline import get_plotlyjs

from nbtl_search.reports.content import Content
from nbtl_search.reports.drawing.pictures import Picture, pictures
from nbtl_search.reports.page import fit, sections
from nbtl_search.reports.page.markup import text

_Section = Callable[[Content, sections.Drawn], str]
_SECTIONS: Final[dict[str, tuple[str, _Section]]] = {
    "result": ("Result", sections.result),
    "searched": ("What was searched", sections.searched),
    "fit": ("Do the weights fit?", fit.fit),
    "history": ("The search", sections.history),
    "curves": ("Learning curves", sections.curves),
    "importance": ("Which dials mattered", sections.importance),
    "non-binary": ("Not binary: the paper's figures for this study", sections.paper_figures),
    "cost": ("Cost", sections.cost),
    "provenance": ("Provenance", sections.provenance),
    "paper": ("Beside the paper", sections.beside_paper),
}


def page(content: Content) -> str:
    """Return the whole page.

    Its policy lets the browser open no connection, and run no script but the two whose digests
    it names: text that slipped through unescaped could still do nothing.
    """
    drawn = {one.name: sections.figure(one, _json(one)) for one in pictures(content)}
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
            f"<body><main>\n<header>{sections.head(content)}\n<nav>{links}</nav></header>",
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


def _json(picture: Picture) -> str:
    """Return a figure without its title, which the page sets itself."""
    picture.figure.update_layout(title=None, margin={"l": 56, "r": 12, "t": 16, "b": 48})
    made: str = picture.figure.to_json(validate=False)
    return made


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _resource(name: str) -> str:
    return files("nbtl_search.reports.page").joinpath(name).read_text("utf-8")
