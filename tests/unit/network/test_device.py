"""Device, precision, and switches that are as before afterwards."""

from typing import Any

import pytest
import torch

from nbtl_search.errors import SpecError
from nbtl_search.network import device
from nbtl_search.network.device import (
    Placement,
    derive_seed,
    deterministic,
    place,
    random_state,
    restore_random_state,
    seeded,
    threads,
)
from nbtl_search.spec import TrainSettings


@pytest.mark.parametrize(
    ("found", "expected"),
    [((), False), (("avx512_bf16",), True), (("amx_bf16",), True), (("avx2",), False)],
)
def test_auto_precision_on_a_cpu_follows_its_instructions(monkeypatch, found, expected):
    monkeypatch.setattr(device, "cpu_has", lambda name: name in found)
    placement = place(TrainSettings(device="cpu"))
    assert placement.bf16 is expected
    assert place(TrainSettings(device="cpu", precision="bf16")).bf16
    assert not place(TrainSettings(device="cpu", precision="fp32")).bf16


@pytest.mark.parametrize(
    ("device_type", "bf16", "expected"),
    [("cpu", True, True), ("cpu", False, True), ("cuda", True, True), ("cuda", False, False)],
)
def test_channels_last_where_it_is_faster(device_type, bf16, expected):
    placement = Placement(device=torch.device(device_type), bf16=bf16)
    assert (placement.memory_format == torch.channels_last) is expected


def test_capabilities_are_asked_of_this_cpu():
    from pathlib import Path

    flags = Path("/proc/cpuinfo").read_text().split()
    assert device.cpu_has("avx512_bf16") == ("avx512_bf16" in flags)


def test_auto_device_is_the_best_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    placement = place(TrainSettings())
    assert placement.device.type == "cuda"
    assert placement.bf16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert place(TrainSettings()).device.type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "xpu", "", "cpu:3"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(SpecError, match=r"train\.device") as caught:
        place(TrainSettings(device=name))
    assert "\n" not in str(caught.value)


def test_switches_are_restored_also_after_an_error():
    before = torch.get_num_threads()

    def fail_inside():
        with threads(before + 1), deterministic():
            assert torch.get_num_threads() == before + 1
            assert torch.are_deterministic_algorithms_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    assert memory.fill_uninitialized_memory


def test_numerics_sets_threads_and_autocast_the_precision():
    placement = Placement(device=torch.device("cpu"), bf16=True, n_threads=2)
    before = torch.get_num_threads()
    with placement.numerics(), placement.autocast():
        assert torch.get_num_threads() == 2
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert torch.get_num_threads() == before


def test_seeds_differ_by_each_part():
    parts = [(1, 2, 3), (1, 23), (12, 3), ("a", 1), ("a1",), (3, 2, 1)]
    assert len({derive_seed(*p) for p in parts}) == len(parts)
    assert all(0 <= derive_seed(*p) < 2**63 for p in parts)


def test_random_states_go_round():
    import io
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    file = io.BytesIO()
    torch.save(random_state(), file)
    expected = draw()
    file.seek(0)
    restore_random_state(torch.load(file, weights_only=True))
    assert draw() == expected
    with seeded(5):
        first = torch.rand(1)
    with seeded(5):
        assert torch.equal(torch.rand(1), first)
