"""Whole programs on a tiny task: a home with its own Postgres, real workers, real signals."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from sqlalchemy import text

from nbtl_search import api
from nbtl_search.ledger import database, records
from nbtl_search.postgres import server
from nbtl_search.spec import best_epoch
from nbtl_search.study import store
from tests.acceptance import forked

NETWORK = "test_resnet"
FAST = ("--beat-s", "0.5")


@dataclass(frozen=True)
class Program:
    """The command line in one home."""

    home: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, *arguments):
        return [sys.executable, "-m", "nbtl_search.cli", *map(str, arguments)]

    @property
    def environment(self):
        hidden = {"NBTL_STORAGE", "NBTL_STORAGE_FILE"}
        kept = {key: value for key, value in os.environ.items() if key not in hidden}
        return kept | {"NBTL_HOME": str(self.home), "OMP_NUM_THREADS": "1"}

    def run(self, *arguments, timeout_s=120, **environment):
        """Run a command to its end."""
        return forked.run(
            [str(argument) for argument in arguments],
            environment=self.environment | environment,
            timeout_s=timeout_s,
        )

    def run_alone(self, *arguments, timeout_s=120, **environment):
        """Run a command to its end as a user's shell does, with its arguments to be seen."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def ok(self, *arguments, **options):
        """Run a command that must succeed; return what it printed."""
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments):
        """Start a command in the background."""
        process = subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def status(self, study):
        """Return what `status --json` prints, without a process of its own for each look."""
        report, _ = api.status(study, home=self.home)
        return report.plain()

    def end(self):
        """End whatever still runs in this home."""
        for process in self.started:
            process.kill()
            process.communicate()
        for kind in ("worker", "trainer"):
            for process in self.processes(kind):
                process.kill()
        server.stop(self.home)

    def open(self):
        """Connect to the home's database."""
        return database.connect(None, home=self.home)

    def processes(self, kind):
        """Return the live processes of this home: 'trainer', 'worker' or 'postgres'."""
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                ours = process.environ().get("NBTL_HOME") == str(self.home)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            words = {"trainer": "nbtl_search.worker.trainer", "worker": "nbtl_search.cli worker"}
            if ours and words[kind] in line:
                found.append(process)
        return found


@contextmanager
def running_program():
    """Give a home outside pytest's folder, which the database's own account could not reach."""
    with tempfile.TemporaryDirectory(prefix="nbtl-home-") as home:
        program = Program(Path(home))
        try:
            yield program
        finally:
            program.end()


@pytest.fixture
def program():
    with running_program() as program:
        yield program


@pytest.fixture(scope="module")
def shared_program():
    """One home for all tests of a module."""
    with running_program() as program:
        yield program


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for an embedded database, which is stopped at the end."""
    folder = tmp_path_factory.mktemp("home")
    yield folder
    server.stop(folder)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Three classes of 30 small images that a network can tell apart: stripes of three widths."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for width in (2, 4, 8):
        (folder / f"stripes-{width}").mkdir()
        for index in range(30):
            stripes = (np.arange(40) // width % 2 * 120)[None, :, None]
            noise = random.integers(0, 130, (40, 40, 3))
            image = Image.fromarray((stripes + noise).astype(np.uint8))
            image.save(folder / f"stripes-{width}" / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A weights file of the tiny network, made here."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(timm.create_model(NETWORK, num_classes=7).state_dict(), file)
    return file


@pytest.fixture(scope="session")
def tiny(images, weights):
    """The arguments of `create` for a study of small trials."""
    return (
        "create", "--dataset", images, "--name", "tiny", "--model", NETWORK,
        "--weights", weights, "--image-px", 32,
        "--set", "train.batch_size=8",
        "--set", "train.schedule=cosine", "--set", "train.warmup_epochs=1",
        "--set", "search.n_startup=4", "--set", "search.pruning.min_updates=18",
    )  # fmt: skip


def free_port():
    """Return a port that nobody has just now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def wait_until(condition, *, timeout_s=120.0, every_s=0.1):
    """Wait until the condition holds; return what it gave."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(every_s)
    pytest.fail(f"{condition} did not come to hold in {timeout_s} s")


def check_invariants(program, study_name, *, n_trials):
    """Check all that must hold of a study that ended; return its trials and their curves."""
    opened = program.open()
    study = store.open_study(opened, study_name)
    trials = records.trials(opened.engine, study.id)
    curves = records.curves(opened.engine, study.id)
    told = study.optuna.get_trials(deepcopy=False)
    with opened.engine.connect() as connection:
        open_attempts = connection.execute(
            text("SELECT count(*) FROM nbtl_attempt WHERE ended_at IS NULL")
        ).scalar_one()
        n_unnotified = connection.execute(
            text("SELECT count(*) FROM nbtl_trial WHERE NOT notified")
        ).scalar_one()
    recipes = {
        trial.number: records.recipe(opened.engine, study.id, trial.number) for trial in trials
    }
    opened.close()
    assert len(trials) == n_trials
    assert {trial.state for trial in trials} <= {"complete", "pruned"}, trials
    finished = [trial for trial in told if trial.state.is_finished()]
    assert len(finished) == n_trials
    assert not [trial for trial in told if trial.state.name == "RUNNING"]
    assert (open_attempts, n_unnotified) == (0, 0)
    for trial in trials:
        curve = curves[trial.number]
        assert [epoch.epoch for epoch in curve] == list(range(1, len(curve) + 1))
        best = best_epoch(curve)
        assert best is not None
        assert trial.value == best.val_top1
        recipe = recipes[trial.number]
        assert recipe is not None
        if trial.state == "complete":
            assert len(curve) == recipe.train.epochs
            assert told[trial.number].value == trial.value
    return trials, curves, recipes
