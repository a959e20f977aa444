"""Escaping of text that anybody may have written, with one function for each place that shows it.

Names of studies, trials, classes, files and hosts, and messages of errors, come from users and
their machines. Escape them where they are written out, once, and nowhere else.
"""

import re
import unicodedata
from html import escape as _entities
from typing import Final

_JOINERS: Final = "\u200c\u200d"  # of emoji and of Persian
_LAID_OUT: Final = "\n\t\u2068\u2069"  # the last two keep a text's direction to itself
_MARKDOWN: Final = re.compile(
    r"""[\\`*_{}\[\]#!|~$^@]           # emphasis, code, links, tables, formulas, mentions
      | (?<=:)/(?=/) | (?<=\bwww)\.    # addresses, which become links of themselves
      | ^[-+=](?=[-+=\s]|$)            # a list, a rule or the underline of a heading
      | (?<=^[0-9])[.)](?=\s|$)        # a numbered list
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SCRIPT: Final = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """Return the text with a replacement character for each that has no picture.

    It protects from what is obeyed instead of shown (U+202E turns the rest of a line around), and
    XML and HTML forbid most of these characters even as entities.
    """
    return "".join(c if _is_shown(c) or c in _LAID_OUT else "\ufffd" for c in text)


def html(text: str) -> str:
    """Escape for HTML and SVG: between tags, and in an attribute with quotes.

    It protects from elements and attributes that a text brings along. In templates Jinja does the
    same by itself; there `visible` is the part that is ours.
    """
    return _entities(visible(text))


def script_json(json: str) -> str:
    """Return a JSON text that may stand inside a script element, and means the same.

    It protects from `</script>` and `<!--`, which a browser sees before it sees any JSON.
    """
    return "".join(_SCRIPT.get(char, char) for char in json)


def plotly(text: str) -> str:
    """Escape for plotly, which draws a part of HTML, and keep the text's direction in it.

    It protects from tags. Only the three characters whose entities plotly knows are escaped.
    """
    safe = _entities(text, quote=False)
    return safe if text.isascii() else f"\u2068{safe}\u2069"


def markdown(text: str) -> str:
    """Escape for Markdown, in one line, between words or in a cell of a table.

    It protects from markup, and from HTML in it: `<`, `>` and `&` become entities, since not every
    reader of Markdown takes a backslash before them.
    """
    line = " ".join(visible(text).split())
    return _MARKDOWN.sub(r"\\\g<0>", _entities(line, quote=False))


def markdown_source(text: str) -> str:
    """Escape the HTML in a text that is Markdown itself, such as a study's description.

    In one line, and safe in a cell of a table.
    """
    return _entities(" ".join(visible(text).split()), quote=False).replace("|", "\\|")


def terminal(text: str) -> str:
    r"""Return what a terminal shows and does not obey: control characters as \x1b and the like.

    Rich takes [brackets] for markup unless they are in a `Text`.
    """
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def spreadsheet(text: str) -> str:
    """Return the text with an apostrophe before what a spreadsheet would run."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _is_shown(character: str) -> bool:
    is_space = unicodedata.category(character) == "Zs"  # those beyond ASCII are not "printable"
    return character.isprintable() or is_space or character in _JOINERS
