"""Checkpoints: whole or not there, checked, never lost to a full disk, a kill or a late writer."""

import copy
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from nbtl_search.errors import SpecError
from nbtl_search.network.grouped import compute_in_fp32, kinds_in_fp32
from nbtl_search.training import checkpoint
from nbtl_search.training.checkpoint import load_latest, save
from nbtl_search.training.run import Run, Step, train


class Stub:
    """What a checkpoint needs of a run."""

    def __init__(self, epoch=0, update=0, value=0.0):
        self.position = (epoch, update)
        self.value = value
        self.size = 1000

    def state_dict(self):
        return {"position": self.position, "weights": torch.full((self.size,), self.value)}

    def load_state_dict(self, saved):
        self.position, self.value = tuple(saved["position"]), saved["weights"][0].item()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_furthest_two_are_kept_in_order_of_position(tmp_path):
    folder = tmp_path / "new" / "folder"
    for epoch, update in [(0, 5), (0, 10), (2, 0), (1, 99), (10, 1)]:
        path = save(folder, Stub(epoch, update, value=epoch))
        assert path.name == f"{epoch:06d}-{update:08d}.ckpt"
    assert names(folder) == ["000002-00000000.ckpt", "000010-00000001.ckpt"]
    run = Stub()
    assert load_latest(folder, run)
    assert run.position == (10, 1)
    assert run.value == 10


def test_no_checkpoint_is_no_error(tmp_path):
    assert not load_latest(tmp_path, Stub())
    assert not load_latest(tmp_path / "absent", Stub())


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "zeros", "append"])
def test_a_damaged_file_falls_back_to_the_one_before(tmp_path, caplog, damage):
    save(tmp_path, Stub(1, 0, value=1))
    newest = save(tmp_path, Stub(2, 0, value=2))
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    damaged: dict[str, bytes | bytearray] = {
        "truncate": content[:-100], "flip": content, "empty": b"",
        "zeros": bytes(len(content)), "append": content + b"x",
    }  # fmt: skip
    newest.write_bytes(damaged[damage])
    run = Stub()
    assert load_latest(tmp_path, run)
    assert run.position == (1, 0)
    assert "is damaged; using the one before it" in caplog.text
    assert names(tmp_path) == ["000001-00000000.ckpt", "000002-00000000.damaged"]
    save(tmp_path, Stub(1, 5))
    save(tmp_path, Stub(1, 6))
    assert load_latest(tmp_path, run)
    assert run.position == (1, 6), "a damaged file does not push sound ones out"


def test_all_damaged_means_from_the_start(tmp_path):
    save(tmp_path, Stub(1, 0)).write_bytes(b"nothing")
    assert not load_latest(tmp_path, Stub())


def test_every_single_truncation_is_noticed(tmp_path):
    whole = save(tmp_path, Stub(1, 0)).read_bytes()
    for kept in range(0, len(whole), 97):
        (tmp_path / "000001-00000000.ckpt").write_bytes(whole[:kept])
        assert not load_latest(tmp_path, Stub())


def test_an_overtaken_writer_removes_nothing_newer(tmp_path):
    for update in (1, 2):
        save(tmp_path, Stub(5, update))
    save(tmp_path, Stub(3, 7))  # of an attempt that does not know it was overtaken
    assert names(tmp_path) == ["000005-00000001.ckpt", "000005-00000002.ckpt"]


def test_a_file_that_vanishes_meanwhile_is_no_error(tmp_path, monkeypatch):
    save(tmp_path, Stub(1, 0, value=1))
    gone = save(tmp_path, Stub(2, 0))
    listed = checkpoint._furthest_first(tmp_path)
    gone.unlink()
    monkeypatch.setattr(checkpoint, "_furthest_first", lambda _: listed)
    run = Stub()
    assert load_latest(tmp_path, run)
    assert run.position == (1, 0)


def test_only_abandoned_temporary_files_are_removed(tmp_path):
    old, young = (tmp_path / f".000001-00000000.ckpt.{n}.tmp" for n in ("1-a", "2-b"))
    for path in (old, young):
        path.write_bytes(b"half")
    long_ago = time.time() - 3600
    os.utime(old, (long_ago, long_ago))
    save(tmp_path, Stub(1, 0))
    assert not old.exists()
    assert young.exists()


def test_code_in_a_checkpoint_is_never_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    class Spoilt(Stub):
        def state_dict(self):
            return {"position": Evil()}

    save(tmp_path, Spoilt(1, 0))
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        load_latest(tmp_path, Stub())
    assert "unpickled" not in capsys.readouterr().out


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from nbtl_search.training.checkpoint import save

class Stub:
    position = (2, 0)
    def state_dict(self): return {"weights": torch.zeros(100_000)}
    def load_state_dict(self, saved): pass

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save(Path(sys.argv[1]), Stub())
except OSError as error:
    print("refused", error.errno)
"""


def test_a_file_that_does_not_fit_leaves_the_old_ones(tmp_path):
    """The kernel refuses the write in the middle, as on a full disk or quota."""
    save(tmp_path, Stub(0, 1))
    save(tmp_path, Stub(1, 0, value=1))
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=os.getcwd(),  # noqa: PTH109
    )  # fmt: skip
    assert done.stdout.split()[0] == "refused"
    assert names(tmp_path) == ["000000-00000001.ckpt", "000001-00000000.ckpt"]
    run = Stub()
    assert load_latest(tmp_path, run)
    assert run.value == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_full_disk_raises_the_os_error_and_cleans_up(tmp_path, monkeypatch):
    save(tmp_path, Stub(1, 0))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, Stub(2, 0))
    assert names(tmp_path) == ["000001-00000000.ckpt"]


WRITER = """
import sys
from pathlib import Path
import torch
from nbtl_search.training.checkpoint import save

class Stub:
    position = (0, 0)
    def state_dict(self):
        return {"position": self.position, "weights": torch.full((300_000,), self.position[1])}
    def load_state_dict(self, saved): pass

run = Stub()
for update in range(1, 10_000):
    run.position = (0, update)
    save(Path(sys.argv[1]), run)
    print(update, flush=True)
"""


@pytest.mark.chaos
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)],
        stdout=subprocess.PIPE, text=True, cwd=os.getcwd(),  # noqa: PTH109
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if int(line) == 12:
                process.send_signal(signal.SIGKILL)
                break
        rest = process.stdout.read().split()
    last_reported = int(rest[-1]) if rest else 12
    run = Stub()
    assert load_latest(tmp_path, run)
    assert run.position[1] >= last_reported
    assert run.value == run.position[1]


def test_a_real_run_goes_on_from_disk_bit_for_bit(tiny_prepared, tiny_home, tiny_recipe, tmp_path):
    def fresh():
        return Run(tiny_recipe(), prepared=tiny_prepared, home=tiny_home)

    whole, stopped = fresh(), fresh()
    list(train(whole))
    for event in train(stopped):
        if event == Step(epoch=2, update=1, n_updates=stopped.n_updates):
            save(tmp_path, stopped)
            break
    resumed = fresh()
    assert load_latest(tmp_path, resumed)
    assert resumed.position == (1, 1)
    list(train(resumed))
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert a.same_result(b)
    mine, other = whole.network.model.state_dict(), resumed.network.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in mine.items())


def test_a_checkpoint_of_another_recipe_is_refused(tiny_prepared, tiny_home, tiny_recipe, tmp_path):
    run = Run(tiny_recipe(), prepared=tiny_prepared, home=tiny_home)
    save(tmp_path, run)
    other = Run(tiny_recipe(dials={"beta": 0.5}), prepared=tiny_prepared, home=tiny_home)
    before = copy.deepcopy(dict(other.network.model.state_dict()))
    with pytest.raises(SpecError, match=r"dials\.beta"):
        load_latest(tmp_path, other)
    after = other.network.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert names(tmp_path) == ["000000-00000000.ckpt"], "it is not damaged, only another's"


@pytest.mark.parametrize("kinds", [["depthwise 3x3 / 2"], ["depthwise 3x3 / 1"], None])
def test_a_run_goes_on_in_the_arithmetic_it_began_in(
    tiny_prepared, tiny_home, tiny_recipe, tmp_path, kinds
):
    """Also where this machine would choose other kinds now; None: saved before there was one."""
    recipe = tiny_recipe(
        model={"name": "mobilenetv2_035", "weights": "random"},
        train={"precision": "bf16", "epochs": 2},
    )

    def make(which):
        run = Run(recipe, prepared=tiny_prepared, home=tiny_home)
        compute_in_fp32(run.network.model, which)
        return run

    whole = make(kinds or [])
    steps = train(whole)
    next(steps)
    save(tmp_path, whole)
    if kinds is None:
        state = {name: value for name, value in whole.state_dict().items() if name != "in_fp32"}
        whole.state_dict = lambda: state
        save(tmp_path, whole)
    resumed = make(["depthwise 3x3 / 1", "depthwise 3x3 / 2"])
    assert load_latest(tmp_path, resumed)
    assert kinds_in_fp32(resumed.network.model) == (kinds or [])
    assert resumed.precision == ("bf16 and fp32" if kinds else "bf16")
    list(steps)
    list(train(resumed))
    pairs = zip(whole.history, resumed.history, strict=True)
    assert all(one.same_result(other) for one, other in pairs)
