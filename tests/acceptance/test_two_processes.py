"""The supervisor's process never loads torch, and the trainer's never optuna."""

import subprocess
import sys

import pytest

from tests.acceptance.conftest import FAST, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_supervisor_without_torch_beside_a_trainer_with_it(program, tiny):
    program.ok(*tiny, "--epochs", 50, "--trials", 1)
    program.start("worker", "tiny", *FAST)
    wait_until(lambda: program.status("tiny")["epochs_spent"] > 0)
    (supervisor,), (trainer,) = program.processes("worker"), program.processes("trainer")

    def loaded(process):
        return "\n".join(area.path for area in process.memory_maps())

    assert "libtorch" in loaded(trainer)
    assert "libtorch" not in loaded(supervisor)
    assert "psycopg2" in loaded(supervisor)
    assert "psycopg2" not in loaded(trainer)


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("nbtl_search.worker.supervisor", ["torch", "timm", "torchvision"]),
        ("nbtl_search.worker.trainer", ["optuna", "sqlalchemy", "psycopg2"]),
        ("nbtl_search.cli", ["torch", "optuna", "sqlalchemy", "numpy"]),
        ("nbtl_search", ["torch", "optuna", "sqlalchemy", "numpy", "pydantic"]),
    ],
)
def test_what_importing_a_module_loads(module, never):
    code = f"import sys, {module}; print(sorted(set({never}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
