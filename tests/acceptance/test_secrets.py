"""A full run leaves no password in any process's arguments, log, table or output."""

import threading
import time

import psutil
import pytest
from sqlalchemy import inspect, text

from tests.acceptance.conftest import FAST

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def watch(seen, done):
    """Collect the arguments of every process until told to stop."""
    while not done.is_set():
        for process in psutil.process_iter(["cmdline"]):
            seen.add(" ".join(process.info["cmdline"] or []))
        time.sleep(0.05)


def everything_stored(storage):
    """Return every row of every table as text."""
    with storage.engine.connect() as connection:
        return "\n".join(
            str(row)
            for table in inspect(storage.engine).get_table_names()
            for row in connection.execute(text(f'SELECT "{table}"::text FROM "{table}"'))
        )


@pytest.mark.timeout(400)
@pytest.mark.parametrize("given", ["embedded", "by file"])
def test_no_password_is_seen_anywhere(program, tiny, tmp_path, given):
    storage = program.open()
    password = storage.url.password
    environment = {}
    if given == "by file":
        file = tmp_path / "url"
        file.write_text(storage.url.render_as_string(hide_password=False))
        environment = {"NBTL_STORAGE_FILE": str(file)}
    seen: set[str] = set()
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(seen, done))
    watcher.start()
    try:
        outputs = [
            program.run_alone(*arguments, timeout_s=300, **environment)
            for arguments in (
                (*tiny, "--epochs", 1, "--trials", 2),
                ("launch", "tiny", "--workers", 1, "--no-preflight", *FAST),
                ("status", "tiny"),
                ("status", "tiny", "--json"),
                ("best", "tiny"),
                ("db", "status"),
            )
        ]
    finally:
        done.set()
        watcher.join()
    assert [output.returncode for output in outputs] == [0] * len(outputs), outputs
    assert any("nbtl_search.worker.trainer" in line for line in seen), "nothing was watched"
    assert not [line for line in seen if password in line]
    assert not [output for output in outputs if password in output.stdout + output.stderr]
    assert password not in everything_stored(storage)
    storage.close()
    readable = [path for path in program.home.rglob("*") if path.is_file()]
    holding = [path for path in readable if password.encode() in path.read_bytes()]
    assert [path.name for path in holding] == ["password"]
    assert holding[0].stat().st_mode & 0o077 == 0
