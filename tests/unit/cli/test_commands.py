"""The command line's help: complete, with an example each, and quick to import."""

import re

import click
import pytest
from click.testing import CliRunner

from nbtl_search.cli.app import app

VERBS = app.list_commands(click.Context(app))


def help_of(*words):
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="nbtl-search")
    assert result.exit_code == 0, result.output
    return result.output


def test_the_main_help_names_every_verb():
    text = help_of()
    for verb in VERBS:
        assert re.search(rf"^  {verb} +[A-Z]", text, re.MULTILINE), verb


@pytest.mark.parametrize("verb", VERBS)
def test_each_help_has_an_example_and_explains_each_option(verb):
    text = help_of(verb)
    assert f"nbtl-search {verb}" in text.split("Usage:")[1].split("\n", 1)[1]
    for line in re.findall(r"^  (-.*)$", text, re.MULTILINE):
        assert re.search(r"\S  +\S", line) or line.rstrip().endswith(("DIRECTORY", "FILE", "TEXT",
            "KEY=VALUE", "FLOAT RANGE", "INTEGER RANGE")), line  # fmt: skip


@pytest.mark.parametrize(
    "verb",
    [
        "create", "status", "list", "best", "train", "prepare",
        "finalize", "ablate", "export", "predict", "reproduce",
    ],
)  # fmt: skip
def test_scripts_can_ask_for_json(verb):
    assert "--json" in help_of(verb)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell):
    result = CliRunner().invoke(app, ["completion", shell], prog_name="nbtl-search")
    assert "_NBTL_SEARCH_COMPLETE" in result.output
