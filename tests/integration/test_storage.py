import logging
import subprocess
import sys

import optuna
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError

from nbtl_search.errors import SchemaError, StorageError, StorageLostError
from nbtl_search.ledger import database
from nbtl_search.postgres.connection import storage_errors, wait_for
from nbtl_search.study import store

SECRET = "s3cr3t-p4ss"


def chain(error):
    """The texts of an error and of all it was raised from, as a traceback would show them."""
    while error is not None:
        yield f"{error!r} {error}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def refused(url, kind=StorageError):
    with pytest.raises(kind) as caught:
        database.connect(url, home=None)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in " ".join(chain(caught.value))
    return message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"sqlite:///{SECRET}.db", "'sqlite'"),
        (f"mysql+pymysql://u:{SECRET}@host/db", "'mysql'"),
        (f"u:{SECRET}@host", "must be the URL"),
        (f"postgresql://u:{SECRET}@host:port/db", "must be the URL"),
        (f"postgresql://u:half@{SECRET}@host/db", "%40"),
        ("", "must be the URL"),
        (f"postgres://u:{SECRET}@host.invalid/db", "could not translate host name"),
        (f"postgresql://u:{SECRET}@127.0.0.1:1/db?sslmode=bogus", "sslmode"),
        (f"postgresql://u:{SECRET}@127.0.0.1:1/db?bogus=1", "bogus"),
        (f"postgresql://u@127.0.0.1:1/db?sslmode=bogus&password={SECRET}", "sslmode"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_in_one_line(url, says):
    assert says in refused(url)


@pytest.mark.parametrize("host", ["127.0.0.1:1/db", "/db?host=/nowhere"])
def test_a_server_that_does_not_answer_is_lost_not_refused(host):
    assert "does not answer" in refused(f"postgresql://u:{SECRET}@{host}", StorageLostError)


def test_a_wrong_password_is_refused_without_showing_it(server_url):
    message = refused(server_url.set(password=SECRET).render_as_string(hide_password=False))
    assert "password authentication failed" in message


def test_a_missing_database_is_refused(server_url):
    url = server_url.set(database="nowhere").render_as_string(hide_password=False)
    assert '"nowhere" does not exist' in refused(url)


def test_an_old_server_is_refused(database_url, monkeypatch):
    monkeypatch.setattr(database, "OLDEST_POSTGRES", 99)
    assert "must be PostgreSQL 99 or newer" in refused(database_url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgres_uses_our_driver(database_url, scheme):
    rest = database_url.partition("://")[2]
    opened = database.connect(f"{scheme}://{rest}", home=None)
    assert opened.engine.dialect.driver == "psycopg2"
    opened.close()


def test_a_password_in_the_query_is_used_and_hidden():
    parsed = database.parse_url(f"postgresql://u@host/db?password={SECRET}&sslmode=require")
    assert parsed.password == SECRET
    assert SECRET not in f"{parsed} {parsed!r}"
    assert parsed.query == {"sslmode": "require"}


def test_no_repr_shows_the_password(db):
    shown = f"{db!r} {db.url} {db.engine!r} {db.optuna!r} {db.optuna._backend.engine!r}"
    assert db.url.password
    assert db.url.password not in shown


def test_connections_are_named_in_utc_and_cannot_hold_locks_when_frozen(db):
    with db.engine.connect() as connection:
        for setting, value in (
            ("timezone", "UTC"),
            ("application_name", "nbtl-test"),
            ("idle_in_transaction_session_timeout", "1min"),
        ):
            assert connection.execute(text(f"SHOW {setting}")).scalar() == value


def test_options_of_the_url_are_kept(database_url):
    separator = "&" if "?" in database_url else "?"
    url = f"{database_url}{separator}options=-c%20work_mem%3D5MB&application_name=mine"
    opened = database.connect(url, home=None)
    with opened.engine.connect() as connection:
        assert connection.execute(text("SHOW work_mem")).scalar() == "5MB"
        assert connection.execute(text("SHOW timezone")).scalar() == "UTC"
        assert connection.execute(text("SHOW application_name")).scalar() == "mine"
    opened.close()


def test_both_engines_together_use_three_connections(db):
    pools = [db.engine.pool, db.optuna._backend.engine.pool]
    assert sum(pool.size() + pool._max_overflow for pool in pools) == 3


def test_the_optuna_storage_is_cached_and_has_no_heartbeat(db):
    assert isinstance(db.optuna, optuna.storages._CachedStorage)
    assert db.optuna is db.optuna
    assert db.optuna.get_heartbeat_interval() is None


def test_a_dropped_connection_is_replaced(db):
    study = optuna.create_study(storage=db.optuna)
    other = create_engine(db.url)
    with db.engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    with other.begin() as connection:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        others = "pid <> pg_backend_pid() AND datname = current_database()"
        connection.execute(text(f"{kill} WHERE {others}"))
    other.dispose()
    with db.engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    study.enqueue_trial({})
    assert len(study.get_trials()) == 1


def test_workers_are_told_which_command_makes_the_tables(empty_database_url):
    opened = database.connect(empty_database_url, home=None)
    for use in (database.check, lambda it: it.optuna):
        with pytest.raises(SchemaError, match="run: nbtl-search db upgrade"):
            use(opened)
    with opened.engine.connect() as connection:
        count = connection.execute(text("SELECT count(*) FROM pg_stat_user_tables")).scalar()
    assert count == 0
    opened.close()


def test_making_the_tables_twice_changes_nothing(empty_database_url):
    opened = database.connect(empty_database_url, home=None)
    database.create_or_upgrade(opened)
    database.create_or_upgrade(opened)
    database.check(opened)
    opened.close()


def _set_optuna_version(opened, version):
    with opened.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})


def test_the_version_of_optunas_tables_is_the_one_that_optuna_says(db):
    """A new Optuna may need other tables: this number then has to follow."""
    assert db.optuna._backend.get_head_version() == database.OPTUNA_TABLES


def test_looking_at_a_study_does_not_wake_optuna(db, database_url, spec):
    store.create(db, spec)
    program = """
import sys
from nbtl_search import api
report, trials = api.status("cats", storage=sys.stdin.read())
assert (report.study, trials) == ("cats", []), (report, trials)
woken = {name.partition(".")[0] for name in sys.modules}
assert not woken & {"optuna", "alembic", "torch", "plotly"}, woken
"""
    subprocess.run([sys.executable, "-c", program], input=database_url.encode(), check=True)


def test_optunas_tables_of_another_version_are_refused(db):
    _set_optuna_version(db, "v99.0.0.a")
    with pytest.raises(SchemaError, match=r"v99.*upgrade nbtl-search on this machine"):
        database.check(db)
    with pytest.raises(SchemaError, match=r"v99.*upgrade nbtl-search on this machine"):
        database.create_or_upgrade(db)


def test_optunas_tables_without_a_version_are_refused_at_once(db):
    with db.engine.begin() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
    for use in (database.check, lambda it: it.optuna):
        with pytest.raises(SchemaError, match="run: nbtl-search db upgrade"):
            use(db)


def test_optunas_older_tables_are_upgraded_by_the_command_only(db):
    backend = db.optuna._backend
    head, *older = backend.get_all_versions()
    _set_optuna_version(db, older[0])
    again = database.connect(db.url.render_as_string(hide_password=False), home=None)
    with pytest.raises(SchemaError, match="run: nbtl-search db upgrade"):
        database.check(again)
    logger = logging.getLogger("some.other.library")
    database.create_or_upgrade(again)
    database.check(again)
    assert getattr(again.optuna, "_backend").get_current_version() == head  # noqa: B009
    assert not logger.disabled, "alembic's configuration would disable every logger"
    again.close()


def test_errors_of_the_database_inside_optunas_are_ours(db):
    with db.engine.begin() as connection:
        connection.execute(text("DROP TABLE trial_heartbeats, trial_values, studies CASCADE"))
    with pytest.raises(SchemaError, match="db upgrade"), storage_errors():
        optuna.create_study(storage=db.optuna)


def test_a_broken_constraint_is_the_programs_fault_and_passes_unchanged(db):
    statement = text("INSERT INTO nbtl_meta (version) VALUES (NULL)")
    with pytest.raises(IntegrityError), storage_errors(), db.engine.begin() as connection:
        connection.execute(statement)


def test_a_transaction_that_optuna_went_on_with_after_its_connection_was_cut_is_lost():
    with pytest.raises(StorageLostError), storage_errors():
        raise optuna.exceptions.StorageInternalError from PendingRollbackError("rolled back")


def test_a_full_pool_is_lost_not_broken(db):
    db.engine.pool._timeout = 0.01
    with (
        pytest.raises(StorageLostError, match="in use"),
        storage_errors(),
        db.engine.connect(),
        db.engine.connect(),
        db.engine.connect(),
    ):
        pass


@pytest.mark.parametrize("state", ["57P01", "25P03", "40P01", "53300", "08006"])
def test_what_may_pass_is_lost(db, state):
    block = f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$"
    with (
        pytest.raises(StorageLostError),
        storage_errors(),
        db.engine.connect() as connection,
    ):
        connection.execute(text(block))


class Clock:
    def __init__(self):
        self.now = 0.0
        self.pauses = []

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def _waiting(action, clock, *, deadline):
    return wait_for(
        action,
        deadline=deadline,
        first_s=1.0,
        longest_s=5.0,
        clock=lambda: clock.now,
        sleep=clock.sleep,
        uniform=lambda _, high: high,
    )


def test_waiting_backs_off_and_returns_what_the_action_returns():
    clock = Clock()

    def action():
        if clock.now < 16:
            raise StorageLostError
        return "there"

    assert _waiting(action, clock, deadline=100) == "there"
    assert clock.pauses == [1, 2, 4, 5, 5]


def test_waiting_ends_at_the_deadline_with_a_last_try():
    clock = Clock()
    tried = []

    def action():
        tried.append(clock.now)
        message = "gone"
        raise StorageLostError(message)

    with pytest.raises(StorageLostError, match="gone"):
        _waiting(action, clock, deadline=4)
    assert tried == [0, 1, 3, 4]


def test_waiting_does_not_wait_for_a_refusal():
    clock = Clock()

    def action():
        raise SchemaError

    with pytest.raises(SchemaError):
        _waiting(action, clock, deadline=4)
    assert clock.pauses == []
