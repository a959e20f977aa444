"""A real Postgres: one server a test process, and for each test a database cloned from a template.

It is the embedded one, or that of `NBTL_TEST_DATABASE_URL` (a role that may create databases).
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, NullPool, create_engine, text

from nbtl_search.ledger import database
from nbtl_search.postgres import server
from nbtl_search.spec import Budget, DataSettings, Facts, KnownRecipe, SearchSettings, StudySpec


def pytest_collection_modifyitems(items):
    here = os.path.dirname(__file__)  # noqa: PTH120
    for item in items:
        if str(item.path).startswith(here) and "database_url" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.postgres)


def execute(url: URL, *statements: str) -> None:
    """Run statements outside transactions, as those about databases must be."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


@contextlib.contextmanager
def _database(postgres: URL, *, template: str = "template0") -> Iterator[URL]:
    name = f"nbtl_test_{secrets.token_hex(6)}"
    execute(postgres, f'CREATE DATABASE {name} TEMPLATE "{template}"')
    try:
        yield postgres.set(database=name)
    finally:
        execute(postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def public_folder():
    """A folder that others may pass through.

    Not pytest's own: as root, each new pytest closes the folder above all of them again, also to
    the account of a server that another pytest has running there.
    """
    folder = Path(tempfile.mkdtemp(prefix="nbtl-test-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def stopped(public_folder):
    """A home whose server has a table, and does not run; copy it with its owners."""
    path = public_folder / "stopped"
    execute(server.start(path), "CREATE TABLE kept AS SELECT 42 AS x")
    server.stop(path)
    return path


@pytest.fixture(scope="session")
def server_url(public_folder):
    given = os.environ.get("NBTL_TEST_DATABASE_URL")
    if given:
        yield database.parse_url(given)
        return
    home = public_folder / "server"
    yield server.start(home)
    server.stop(home)


@pytest.fixture(scope="session")
def template(server_url):
    with _database(server_url) as url:
        made = database.connect(url.render_as_string(hide_password=False), home=None)
        database.create_or_upgrade(made)
        made.close()
        yield url.database


@pytest.fixture
def empty_database_url(server_url):
    """A database without any table."""
    with _database(server_url) as url:
        yield url.render_as_string(hide_password=False)


@pytest.fixture
def database_url(server_url, template):
    """A database with all tables and no study."""
    with _database(server_url, template=template) as url:
        yield url.render_as_string(hide_password=False)


@pytest.fixture
def db(database_url):
    """A connected `Storage`."""
    opened = database.connect(database_url, home=None, application="nbtl-test")
    yield opened
    opened.close()


@pytest.fixture
def spec():
    """A small study of a network with 22 blocks."""
    return StudySpec(
        name="cats",
        data=DataSettings(dataset="textures"),
        search=SearchSettings(
            n_startup=4,
            known=(
                KnownRecipe(name="default", reason="the usual practice"),
                KnownRecipe(
                    name="paper", reason="table 6", dials={"n_l2sp": "14/22", "alpha": 1e-3}
                ),
            ),
        ),
        budget=Budget(n_trials=8),
        facts=Facts(
            n_blocks=22,
            n_classes=3,
            n_train=30,
            n_val=400,
            n_test=12,
            data_digest="d" * 16,
            weights_digest="random",
        ),
    )
