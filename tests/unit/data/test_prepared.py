import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nbtl_search.data import survey
from nbtl_search.data.images import decode
from nbtl_search.data.prepared import open_prepared, prepare
from nbtl_search.errors import DataError
from nbtl_search.spec import DataSettings


def leftovers(home: Path) -> list[Path]:
    return [path for path in (home / "data").rglob("*-tmp-*") if path.is_dir()]


def test_pixels_and_labels(settings, tmp_path):
    prepared = prepare(settings, home=tmp_path)
    assert (prepared.n_train, prepared.n_val, prepared.n_test) == (18, 6, 6)
    assert prepared.classes == ("ash", "birch", "cedar")
    assert prepared.labels("val").tolist() == [0, 0, 1, 1, 2, 2]
    for split in ("train", "val"):
        for i, item in enumerate(prepared.manifest.items(split)):
            assert item.path is not None
            np.testing.assert_array_equal(
                prepared.original(split, i), np.asarray(decode(item.path))
            )


def test_large_images_are_reduced_for_training_only(settings, tmp_path):
    prepared = prepare(settings, home=tmp_path)
    assert prepared.pixels("train", 0).shape == (32, 42, 3)
    assert prepared.original("train", 0).shape == (40, 52, 3)
    larger = prepare(settings.replace(image_px=20), home=tmp_path)
    np.testing.assert_array_equal(larger.pixels("train", 0), prepared.original("train", 0))
    assert larger.digest == prepared.digest


def test_progress_reaches_the_end_of_each_phase(settings, tmp_path):
    calls: list[tuple[int, int]] = []
    prepare(settings, home=tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [*((i, 30) for i in range(1, 31)), *((i, 24) for i in range(1, 25))]


def test_second_time_reads_no_image(settings, tmp_path, monkeypatch):
    first = prepare(settings, home=tmp_path)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("an image was read again"))
    second = prepare(settings, home=tmp_path)
    opened = open_prepared(settings, home=tmp_path)
    assert opened is not None
    assert first.manifest == second.manifest == opened.manifest


def test_open_prepared_before_and_after(settings, tmp_path):
    assert open_prepared(settings, home=tmp_path) is None
    prepare(settings, home=tmp_path, splits=("train",))
    assert open_prepared(settings, home=tmp_path, splits=("train",)) is not None
    assert open_prepared(settings, home=tmp_path) is None
    assert open_prepared(DataSettings(dataset="dtd"), home=tmp_path) is None


def test_digest_belongs_to_content_not_to_place_or_time(settings, folder, tmp_path):
    digest = prepare(settings, home=tmp_path).digest
    shutil.copytree(folder, tmp_path / "moved" / "photos")
    moved = settings.replace(dataset=str(tmp_path / "moved" / "photos"))
    assert prepare(moved, home=tmp_path).digest == digest
    image = tmp_path / "moved" / "photos" / "ash" / "0.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    assert prepare(moved, home=tmp_path).digest != digest
    assert prepare(settings.replace(split_seed=1), home=tmp_path).digest != digest


def test_digest_covers_test_images_that_are_not_decoded(settings, tmp_path):
    prepared = prepare(settings, home=tmp_path)
    item = prepared.manifest.test[0]
    assert item.path is not None
    item.path.write_bytes(item.path.read_bytes() + b"\0")
    assert prepare(settings, home=tmp_path).digest != prepared.digest


def test_prepared_pickles_without_its_pixels(settings, tmp_path):
    prepared = prepare(settings, home=tmp_path)
    prepared.pixels("train", 0)
    text = pickle.dumps(prepared)
    assert len(text) < 20_000
    np.testing.assert_array_equal(
        pickle.loads(text).pixels("train", 3),  # noqa: S301
        prepared.pixels("train", 3),
    )


def test_textures_are_prepared_too(tmp_path):
    settings = DataSettings(dataset="textures", image_px=16)
    prepared = prepare(settings, home=tmp_path)
    assert prepared.manifest.textures is not None
    key = prepared.manifest.val[5].key
    np.testing.assert_array_equal(prepared.pixels("val", 5), prepared.manifest.textures.render(key))
    assert prepare(settings.replace(split_seed=1), home=tmp_path).digest != prepared.digest
    assert prepare(settings.replace(image_px=17), home=tmp_path).digest != prepared.digest


def test_statistics_are_those_of_all_training_pixels(settings, tmp_path):
    prepared = prepare(settings, home=tmp_path)
    pixels = np.concatenate(
        [prepared.pixels("train", i).reshape(-1, 3) for i in range(prepared.n_train)]
    )
    for measured in (prepared.statistics(), prepared.statistics()):
        np.testing.assert_allclose(measured.mean, (pixels / 255).mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(measured.std, (pixels / 255).std(axis=0), rtol=1e-9)


# ---------------------------------------------------------------------------- damaged images
def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    changed = {"cut": content[: len(content) // 2], "empty": b"", "text": b"GIF? no."}
    path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
def test_damaged_images_are_named_and_nothing_is_made(settings, folder, tmp_path, how):
    for i in range(7):
        damage(folder / "birch" / f"{i}.jpg", how)
    with pytest.raises(DataError, match=r"got 7 that cannot: .* and 2 more; .*--skip-corrupt") as e:
        prepare(settings, home=tmp_path)
    assert str(folder / "birch") in str(e.value)
    assert "\n" not in str(e.value)
    assert not leftovers(tmp_path)
    assert open_prepared(settings, home=tmp_path) is None


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "bmp", "tiff"])
def test_cut_files_of_other_formats_are_found(settings, folder, tmp_path, drawn, suffix):
    damage(drawn(folder / "ash" / f"cut.{suffix}", seed=5), "cut")
    with pytest.raises(DataError, match=rf"got 1 that cannot: .*cut.{suffix}"):
        prepare(settings, home=tmp_path)


def test_skipped_images_are_left_out_and_recorded(settings, tmp_path):
    whole = prepare(settings, home=tmp_path).manifest
    chosen = [split[0] for split in (whole.train, whole.val, whole.test)]
    for item in chosen:
        assert item.path is not None
        damage(item.path, "cut")
    prepared = prepare(settings, home=tmp_path, skip_corrupt=True)
    assert set(prepared.skipped) == {item.key for item in chosen}
    assert (prepared.n_train, prepared.n_val, prepared.n_test) == (17, 5, 5)
    assert prepared.digest != whole.digest
    # The decision stands: workers need not repeat it.
    assert prepare(settings, home=tmp_path).manifest == prepared.manifest


def test_class_left_without_images_is_an_error(settings, folder, tmp_path):
    for path in (folder / "cedar").iterdir():
        damage(path, "cut")
    with pytest.raises(DataError, match="'cedar'"):
        prepare(settings, home=tmp_path, skip_corrupt=True)


def test_missing_image_of_a_list_is_named(tmp_path, settings):
    prepared = prepare(settings, home=tmp_path)
    item = prepared.manifest.val[0]
    assert item.path is not None
    item.path.unlink()
    with pytest.raises(DataError, match=f"1 that are not, first '{item.path}'"):
        survey.fingerprint(prepared.manifest)


def test_file_that_changed_since_is_an_error(settings, tmp_path):
    prepared = prepare(settings, home=tmp_path)
    item = prepared.manifest.train[0]
    assert item.path is not None
    damage(item.path, "cut")
    with pytest.raises(DataError, match="prepare the dataset again"):
        prepared.original("train", 0)


# --------------------------------------------------------------------- space, crowds, kills
def test_full_disk_is_told_before_anything_is_written(settings, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=12_500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"free space in .* make room"):
        prepare(settings, home=tmp_path)
    assert not leftovers(tmp_path)


def test_home_that_cannot_be_written(settings, tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(DataError, match="NBTL_HOME"):
        prepare(settings, home=tmp_path / "home")


FORKS = """
import json, os, signal, sys
from pathlib import Path
from nbtl_search.data.prepared import prepare
from nbtl_search.spec import DataSettings

def child(order):
    def progress(done, total):
        if [done, total] == order["killed_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        settings = DataSettings(dataset=order["dataset"], image_px=16)
        prepare(settings, home=Path(order["home"]), progress=progress)
        os._exit(0)
    finally:
        os._exit(1)

for line in sys.stdin:
    order = json.loads(line)
    children = [os.fork() or child(order) for _ in range(order["n"])]
    print(json.dumps([os.waitpid(pid, 0)[1] for pid in children]), flush=True)
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[Callable[..., list[int]]]:
    """A process that imports once and prepares in forks; returns how each of them ended."""
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def prepare_in_forks(dataset: str, home: Path, *, n: int = 1, killed_at=()) -> list[int]:
            order = {"dataset": dataset, "home": str(home), "n": n, "killed_at": list(killed_at)}
            requests.write(json.dumps(order) + "\n")
            requests.flush()
            ends: list[int] = json.loads(answers.readline())
            return ends

        yield prepare_in_forks


def test_processes_that_prepare_at_once_all_succeed(settings, tmp_path, forks):
    assert forks(settings.dataset, tmp_path, n=4) == [0, 0, 0, 0]
    assert open_prepared(settings, home=tmp_path) is not None
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("moment", [(17, 30), (5, 24), (20, 24)])
def test_killed_in_the_middle_leaves_what_the_next_one_clears(settings, tmp_path, forks, moment):
    assert forks(settings.dataset, tmp_path, killed_at=moment) == [signal.SIGKILL]
    assert len(leftovers(tmp_path)) == 1
    assert open_prepared(settings, home=tmp_path) is None
    prepared = prepare(settings, home=tmp_path)
    assert not leftovers(tmp_path)
    item = prepared.manifest.train[4]
    assert item.path is not None
    np.testing.assert_array_equal(prepared.original("train", 4), np.asarray(decode(item.path)))


def test_leftovers_of_other_machines_go_when_they_are_old(settings, tmp_path):
    prepared = prepare(settings, home=tmp_path, splits=("train",))
    old, new = (prepared.directory / f".val-32-tmp-elsewhere-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.mkdir()
    yesterday = time.time() - 90_000
    os.utime(old, (yesterday, yesterday))
    prepare(settings, home=tmp_path)
    assert leftovers(tmp_path) == [new]


def test_survey_is_plain_json(settings, tmp_path):
    prepare(settings, home=tmp_path)
    (path,) = (tmp_path / "data" / "surveys").glob("*/survey.json")
    assert json.loads(path.read_text())["skipped"] == {}
