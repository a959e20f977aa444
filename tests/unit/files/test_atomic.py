"""Files written whole or not at all, and never readable by others on the way."""

import os
import stat

import pytest

from nbtl_search.files.atomic import write_durably


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_parts_stand_one_behind_the_other_and_replace_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_durably(path, b"one ", memoryview(b"two"))
    assert path.read_bytes() == b"one two"
    assert names(tmp_path) == ["file"]


def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_private_file_is_private_from_its_first_byte(tmp_path, monkeypatch, mode):
    seen, original = [], os.fchmod

    def noted(descriptor, wanted):
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        original(descriptor, wanted)

    monkeypatch.setattr(os, "fchmod", noted)
    before = os.umask(0)
    try:
        write_durably(tmp_path / "file", b"secret", mode=mode)
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_without_a_mode_the_umask_decides(tmp_path):
    before = os.umask(0o027)
    try:
        write_durably(tmp_path / "file", b"open")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
