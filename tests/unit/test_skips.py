"""The option that keeps continuous integration from skipping what it must run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = """
import pytest

@pytest.mark.data
def test_by_need(): pass

@pytest.mark.chaos
def test_by_itself(): pytest.skip("no server")

@pytest.mark.chaos
@pytest.mark.xfail(strict=True)
def test_expected(): raise ValueError

def test_plain(): pytest.skip("of no interest")
"""


@pytest.fixture(autouse=True)
def _no_data(monkeypatch):
    monkeypatch.delenv("NBTL_REAL_DATA", raising=False)


@pytest.fixture
def outcomes(tmp_path):
    """Run the sample under our settings and our conftest; count what came of it."""
    (tmp_path / "test_sample.py").write_text(SAMPLE)

    def run(*options: str) -> dict[str, int]:
        settings = [f"-c{ROOT / 'pyproject.toml'}", "-ptests.conftest", "-pno:cacheprovider"]
        command = [sys.executable, "-mpytest", *settings, *options, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        last = done.stdout.splitlines()[-1] if done.stdout else ""
        return {
            word: int(n) for n, word in re.findall(r"(\d+) ([a-z]+)\b", last.partition(" in ")[0])
        }

    return run


def test_a_missing_need_is_a_visible_skip(outcomes):
    assert outcomes() == {"skipped": 3, "xfailed": 1}


def test_a_forbidden_skip_is_a_failure(outcomes):
    assert outcomes("--no-skips=data,chaos") == {
        "error": 1,  # skipped before it began
        "failed": 1,
        "skipped": 1,
        "xfailed": 1,
    }


def test_an_unknown_marker_is_refused(outcomes):
    assert outcomes("--no-skips=date") == {}


def test_a_whole_modules_skip_is_a_failure(outcomes, tmp_path):
    whole = tmp_path / "test_whole.py"
    whole.write_text("import pytest\npytest.skip('x', allow_module_level=True)\n")
    assert outcomes() == {"skipped": 4, "xfailed": 1}
    assert outcomes("--no-skips=data") == {"error": 1}
