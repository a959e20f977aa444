"""A backup taken in mid-run comes back as it was, and the study goes on to exactly its budget."""

import errno
import os
from typing import Any

import optuna
import pytest
from sqlalchemy import text

from nbtl_search.errors import FencedError, SchemaError, StorageError
from nbtl_search.ledger import (
    backup,
    database,
    records,
    schema,
)
from nbtl_search.ledger.leases import Leases, TrialOutcome
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.postgres import data_folder
from nbtl_search.spec import Epoch
from nbtl_search.study import sampling, store
from tests.integration.older_tables import as_version

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

N_TRIALS = 8
GIVEN_BACK = {"nbtl_trial", "nbtl_attempt"}  # the one lease that was held


def epoch(number, top1=50.0):
    return Epoch(
        epoch=number, train_loss=1.0, val_loss=1.0, val_top1=top1, val_top5=90.0, lr=0.1,
        n_images=32, seconds=0.1, micro_batch=32,
    )  # fmt: skip


def take(study, worker="w"):
    leases, _ = _hands(study)
    return leases.take_over(worker) or leases.grant(worker, sampling.asking(study))


def _hands(study):
    engine = study.storage.engine
    return Leases(engine, study.id, ladder=study.ladder), Ledger(engine, study.id)


def finish(study, lease):
    leases, ledger = _hands(study)
    leases.record(lease, [epoch(1), epoch(2, 60.0 + lease.number)])
    leases.finish(lease, TrialOutcome(state="complete", value=60.0 + lease.number, best_epoch=2))
    for ended in ledger.unnotified():
        sampling.tell(study, ended)
        ledger.mark_notified(ended.trial_id)


def rows(opened):
    """Every row of every table, but for what a restore changes on purpose."""
    found: dict[str, list[Any]] = {}
    with opened.engine.connect() as connection:
        for table in schema.metadata.sorted_tables:
            columns = [c.name for c in table.columns if c.name not in {"uid", "lease_expires"}]
            names = ", ".join(columns)
            query = text(f"SELECT {names} FROM {table.name} ORDER BY {names}")
            found[table.name] = [tuple(row) for row in connection.execute(query)]
        for name in ("studies", "trials", "trial_values", "trial_intermediate_values"):
            query = text(f"SELECT t::text FROM {name} t ORDER BY 1")
            found[name] = [tuple(row) for row in connection.execute(query)]
    return found


@pytest.fixture
def half_way(db, spec):
    """A study with three trials that ended and one that runs; and that one's lease."""
    study = store.create(db, spec)
    for _ in range(3):
        finish(study, take(study))
    lease = take(study)
    Leases(db.engine, study.id, ladder=study.ladder).record(lease, [epoch(1)])
    return study, lease


@pytest.fixture
def elsewhere(empty_database_url):
    opened = database.connect(empty_database_url, home=None)
    yield opened
    opened.close()


@pytest.mark.usefixtures("half_way")
def test_a_backup_comes_back_row_by_row_in_an_empty_database(db, elsewhere, tmp_path):
    assert backup.backup(db, tmp_path / "a.backup") == (tmp_path / "a.backup").stat().st_size
    before = rows(db)
    done = backup.restore(elsewhere, tmp_path / "a.backup")
    assert (done.n_studies, done.from_version) == (1, schema.VERSION)
    after = rows(elsewhere)
    assert {name for name in before if after[name] != before[name]} == GIVEN_BACK
    assert before["nbtl_epoch"]


@pytest.mark.usefixtures("half_way")
def test_the_study_goes_on_to_exactly_its_budget(db, elsewhere, tmp_path):
    backup.backup(db, tmp_path / "a.backup")
    backup.restore(elsewhere, tmp_path / "a.backup")
    study = store.open_study(elsewhere, "cats")
    while (lease := take(study)) is not None:
        finish(study, lease)
    trials = records.trials(elsewhere.engine, study.id)
    assert [trial.state for trial in trials] == ["complete"] * N_TRIALS
    assert [trial.n_epochs for trial in trials] == [2] * N_TRIALS
    assert trials[3].n_attempts == 2, "the trial that ran was taken over"
    told = study.optuna.get_trials(deepcopy=False)
    ended = [trial for trial in told if trial.state is optuna.trial.TrialState.COMPLETE]
    assert len(ended) == N_TRIALS


def test_workers_from_before_are_fenced_whatever_tokens_they_hold(db, half_way, tmp_path):
    study, old = half_way
    backup.backup(db, tmp_path / "a.backup")
    leases = Leases(db.engine, study.id, ladder=study.ladder)
    leases.release(old, cause="preempted")
    later = leases.take_over("later")  # a token that the backup has never seen
    backup.restore(db, tmp_path / "a.backup", replace=True)
    new = leases.take_over("new")
    assert later is not None
    assert new is not None
    assert new.trial_id == later.trial_id
    assert new.token > later.token + 1000
    for stale in (old, later):
        with pytest.raises(FencedError):
            leases.record(stale, [epoch(2)])
    assert leases.renew(new) == "run"


def test_checkpoints_of_trials_it_has_never_heard_of_are_left_alone(db, half_way, tmp_path):
    study, _ = half_way
    backup.backup(db, tmp_path / "a.backup")
    backup.restore(db, tmp_path / "a.backup", replace=True)
    assert store.open_study(db, "cats").uid != study.uid


@pytest.mark.usefixtures("half_way")
def test_studies_are_not_lost_unasked(db, tmp_path):
    backup.backup(db, tmp_path / "a.backup")
    before = rows(db)
    with pytest.raises(StorageError, match="--replace"):
        backup.restore(db, tmp_path / "a.backup")
    assert rows(db) == before


@pytest.mark.usefixtures("half_way")
def test_a_damaged_backup_leaves_the_database_as_it_was(db, tmp_path):
    file = tmp_path / "a.backup"
    backup.backup(db, file)
    before = rows(db)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError):
        backup.restore(db, file, replace=True)
    file.write_bytes(b"no backup at all")
    with pytest.raises(StorageError, match="pg_restore"):
        backup.restore(db, file, replace=True)
    assert rows(db) == before


@pytest.mark.usefixtures("half_way")
def test_a_restore_that_fails_half_way_changes_nothing(db, tmp_path, monkeypatch):
    backup.backup(db, tmp_path / "a.backup")
    before = rows(db)
    monkeypatch.setattr(backup, "_FENCE", "SELECT 1/0;")
    with pytest.raises(StorageError, match="division by zero"):
        backup.restore(db, tmp_path / "a.backup", replace=True)
    assert rows(db) == before


@pytest.mark.usefixtures("half_way")
def test_a_backup_of_a_newer_program_is_refused(db, elsewhere, tmp_path):
    with db.engine.begin() as connection:
        connection.execute(text("UPDATE nbtl_meta SET version = 99"))
    backup.backup(db, tmp_path / "a.backup")
    with pytest.raises(SchemaError, match="99"):
        backup.restore(elsewhere, tmp_path / "a.backup")
    assert backup.count_studies(elsewhere) == 0


@pytest.mark.usefixtures("half_way")
def test_a_backup_of_an_older_program_is_upgraded(db, elsewhere, tmp_path):
    as_version(db.engine, 2)
    backup.backup(db, tmp_path / "a.backup")
    assert backup.restore(elsewhere, tmp_path / "a.backup").from_version == 2
    database.check(elsewhere)
    assert take(store.open_study(elsewhere, "cats")).attempt == 2


@pytest.mark.usefixtures("half_way")
@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_backup_from_before_an_upgrade_replaces_the_upgraded_tables(db, tmp_path, version):
    as_version(db.engine, version)
    backup.backup(db, tmp_path / "a.backup")
    database.create_or_upgrade(db)
    assert backup.restore(db, tmp_path / "a.backup", replace=True).from_version == version
    database.check(db)
    assert take(store.open_study(db, "cats")).attempt == 2


@pytest.mark.usefixtures("half_way")
def test_upgraded_tables_are_replaced_by_new_ones(db, elsewhere, tmp_path):
    backup.backup(db, tmp_path / "a.backup")
    database.create_or_upgrade(elsewhere)
    as_version(elsewhere.engine, 3)
    database.create_or_upgrade(elsewhere)
    assert backup.restore(elsewhere, tmp_path / "a.backup", replace=True).n_studies == 1


def test_a_file_that_exists_is_kept_unless_forced(db, tmp_path):
    file = tmp_path / "a.backup"
    file.write_text("precious")
    with pytest.raises(StorageError, match="--force"):
        backup.backup(db, file)
    assert file.read_text() == "precious"
    backup.backup(db, file, force=True)
    assert file.read_bytes().startswith(b"PGDMP")
    assert file.stat().st_mode & 0o077 == 0


def test_a_full_disk_keeps_the_backup_before(db, tmp_path, monkeypatch):
    file = tmp_path / "a.backup"
    backup.backup(db, file)
    before = file.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        backup.backup(db, file, force=True)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.backup"]


def test_a_folder_that_is_not_there_is_named(db, tmp_path):
    with pytest.raises(StorageError, match="nowhere"):
        backup.backup(db, tmp_path / "nowhere" / "a.backup")


def test_a_newer_server_is_refused(db, monkeypatch):
    monkeypatch.setattr(data_folder, "MAJOR", 17)
    with pytest.raises(StorageError, match="got 18"):
        backup._check_major(db, at_least=13)


def test_a_password_with_any_character_gets_through(db, tmp_path):
    password = "a:b\\c 'd' \"e\" %f"
    role = "nbtl_backup_test"
    with db.engine.begin() as connection:
        quoted = password.replace("'", "''")
        connection.execute(text(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{quoted}'"))
    try:
        url = db.url.set(username=role, password=password)
        other = database.connect(url.render_as_string(hide_password=False), home=None)
        assert backup.backup(other, tmp_path / "a.backup") > 0
        other.close()
    finally:
        with db.engine.begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))
