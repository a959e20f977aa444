"""Escaping, for each place that shows text of users."""

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtl_search import escaping

NASTY = "</script><img src=x onerror=alert(1)>"


class Texts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data


@given(st.text())
def test_html_shows_every_text_as_text(text):
    parser = Texts()
    parser.feed(f'<p title="{escaping.html(text)}">{escaping.html(text)}</p>')
    parser.close()
    shown = escaping.visible(text)
    assert parser.tags == [("p", [("title", shown)])]
    assert parser.text == shown


def test_what_has_no_picture_is_replaced_and_joiners_stay():
    assert escaping.visible("a\x1b[31m\u202eb\ud800") == "a\ufffd[31m\ufffdb\ufffd"
    assert escaping.html("👩\u200d🔬\n\u2068x\u2069") == "👩\u200d🔬\n\u2068x\u2069"


@given(st.text())
def test_json_in_a_script_means_the_same(text):
    made = escaping.script_json(json.dumps({"x": text}, ensure_ascii=False))
    assert not set("<>&\u2028\u2029") & set(made)
    assert json.loads(made) == {"x": text}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b*c_d", r"a\|b\*c\_d"),
        ("<b> & [x](y)", r"&lt;b&gt; &amp; \[x\](y)"),
        ("two\n# lines", r"two \# lines"),
        ("see http://x.y and www.x.y", r"see http:\//x.y and www\.x.y"),
        ("- no list", r"\- no list"),
        ("-0.5 to +0.5", "-0.5 to +0.5"),
        ("1. no list", r"1\. no list"),
        ("1.5 points", "1.5 points"),
        ("--- no rule", r"\--- no rule"),
        ("back\\slash `code` $x_{y}$", r"back\\slash \`code\` \$x\_\{y\}\$"),
        ('it\'s "so"', 'it\'s "so"'),
    ],
)
def test_markdown(text, expected):
    assert escaping.markdown(text) == expected


def test_plotly_keeps_the_entities_it_knows_only():
    assert escaping.plotly("<b>\"&'") == "&lt;b&gt;\"&amp;'"
    assert escaping.plotly("מגן") == "\u2068מגן\u2069"  # noqa: RUF001


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\x1b[2J\a", r"\x1b[2J\x07"), ("a\u202eb", r"a\u202eb"), ("עברית 👩\u200d🔬", None)],
)
def test_a_terminal_obeys_nothing(text, expected):
    assert escaping.terminal(text) == (expected or text)


def test_a_spreadsheet_runs_nothing():
    assert escaping.spreadsheet("=1+1") == "'=1+1"
    assert escaping.spreadsheet("1+1") == "1+1"
    assert NASTY in escaping.spreadsheet(NASTY)
