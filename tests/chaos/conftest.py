"""For each test process a Postgres of its own, which is killed too; for each test a database."""

import os
import secrets
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL, NullPool, create_engine, text

from nbtl_search.ledger.database import connect, create_or_upgrade
from nbtl_search.postgres.server import start, status, stop
from nbtl_search.spec import (
    Budget,
    DataSettings,
    Facts,
    KnownRecipe,
    Pruning,
    SearchSettings,
    StudySpec,
    TrainSettings,
)
from nbtl_search.study import store


def pytest_collection_modifyitems(items):
    for item in items:
        if "chaos" in Path(item.path).parts:
            for marker in ("chaos", "postgres", "slow"):
                item.add_marker(getattr(pytest.mark, marker))


@dataclass(frozen=True)
class Server:
    """The embedded Postgres of this test process."""

    home: Path

    @property
    def url(self) -> URL:
        return start(self.home)

    def kill(self):
        """Kill the postmaster, and wait until it is gone: it takes connections until then."""
        pid = status(self.home).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while status(self.home).running:
            time.sleep(0.01)

    def execute(self, *statements):
        engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))


@pytest.fixture(scope="session")
def server():
    folder = Path(tempfile.mkdtemp(prefix="nbtl-chaos-", dir="/tmp"))
    folder.chmod(0o711)
    server = Server(folder / "server")
    made = connect(None, home=server.home)
    create_or_upgrade(made)
    made.close()
    server.execute("CREATE DATABASE template TEMPLATE postgres")
    yield server
    stop(server.home)
    shutil.rmtree(folder)


@pytest.fixture
def database(server):
    """The URL of a fresh database with all tables."""
    name = f"chaos_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE template")
    yield server.url.set(database=name)
    server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def home():
    """A folder for checkpoints and logs."""
    with tempfile.TemporaryDirectory(prefix="nbtl-chaos-home-") as folder:
        yield Path(folder)


def plain(url):
    """Return the URL as text, password and all."""
    return url.render_as_string(hide_password=False)


def make_study(url, *, n_trials, epochs, budget_epochs=None, rungs=(0.34, 0.67), name="chaos"):
    """Store a study for the stub trainer; return it with its open storage."""
    opened = connect(plain(url), home=None, answer_s=10)
    spec = StudySpec(
        name=name,
        data=DataSettings(dataset="textures"),
        train=TrainSettings(epochs=epochs),
        search=SearchSettings(
            n_startup=2,
            repeats=0.4,
            pruning=Pruning(
                min_epochs=1, min_updates=1, rungs=rungs, audit=0.25, min_peers=2, reduction=2
            ),
            known=(
                KnownRecipe(name="default", reason="the usual practice"),
                KnownRecipe(name="paper", reason="table 6", dials={"n_l2sp": "14/22"}),
            ),
        ),
        budget=Budget(n_trials=n_trials, epochs=budget_epochs),
        facts=Facts(
            n_blocks=22, n_classes=3, n_train=3200, n_val=12, n_test=12,
            data_digest="d" * 16, weights_digest="random",
        ),
    )  # fmt: skip
    return store.create(opened, spec)


@pytest.fixture
def study(database):
    study = make_study(database, n_trials=4, epochs=4)
    yield study
    study.storage.close()
