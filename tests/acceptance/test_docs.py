"""The Python page of the docs runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nbtl_search.postgres import server

PAGE = Path(__file__).parents[2] / "docs" / "python.md"

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_the_python_page_is_one_session_that_runs(program, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 7
    home = {"XDG_DATA_HOME": str(program.home), "OMP_NUM_THREADS": "1"}
    environment = os.environ | home | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    server.stop(program.home / "nbtl-search")
    assert done.returncode == 0, done.stderr
    assert "3 complete, 0 pruned of 3" in done.stdout
    assert "epoch 2: validation top-1" in done.stdout
    assert "no study 'first-look'" in done.stdout
    assert (tmp_path / "model" / "config.json").is_file()
    assert (tmp_path / "report.html").is_file()
