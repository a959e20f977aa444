"""The lock of a shared folder: one holder, none after a kill, and none at all on some disks."""

import errno
import subprocess
import sys

import pytest
from filelock import FileLock

from nbtl_search.errors import DataError
from nbtl_search.files import shared_folder
from nbtl_search.files.shared_folder import alone

HOLD = """
import sys, time
from pathlib import Path
from nbtl_search.files.shared_folder import alone

with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


class StoppedError(Exception):
    pass


@pytest.fixture
def target(tmp_path):
    return tmp_path / "made"


def stop():
    raise StoppedError


def test_a_killed_holder_leaves_no_lock(target):
    command = [sys.executable, "-c", HOLD, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoppedError) as caught, alone(target, waiting=stop):
            pytest.fail("two at once")
        assert caught.value.__context__ is None
        holder.kill()
        holder.wait()
        with alone(target, waiting=stop) as locked:
            assert locked


def test_who_waits_is_called_until_the_lock_is_free(target, monkeypatch):
    monkeypatch.setattr(shared_folder, "WAIT_S", 0.0)
    first = alone(target)
    first.__enter__()
    calls: list[None] = []

    def waiting():
        calls.append(None)
        if len(calls) == 3:
            first.__exit__(None, None, None)

    with alone(target, waiting=waiting) as locked:
        assert locked
    assert len(calls) == 3


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_disk_without_locks_holds_nobody_up(target, monkeypatch, number):
    def refuse(*_args, **_options):
        raise OSError(number, "no locks")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with alone(target) as locked:
        assert not locked


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    target = tmp_path / "file" / "made"
    target.parent.write_text("no folder")
    with pytest.raises(DataError, match="must be a folder with room"), alone(target):
        pytest.fail("locked")
