"""Grouped convolutions in fp32 inside a bf16 network: which, when, and nothing else changes."""

import copy
import json

import pytest
import timm
import torch
from torch import nn

from nbtl_search.network import grouped

NETWORKS = ["mobilenetv2_035", "convnext_atto", "resnext26ts", "regnety_002", "test_resnet"]


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("mobilenetv2_035", num_classes=3)


@pytest.fixture
def measured(monkeypatch):
    """Have a ratio of every kind by hand; return the kinds that were measured."""
    asked = []

    def slowdown(kind):
        asked.append(kind)
        return 5.0 if kind.endswith("/ 2") else 1.0

    monkeypatch.setattr(grouped, "_slowdown", slowdown)
    return asked


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def bf16(model, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(images)


def test_the_slow_kinds_train_in_fp32_and_no_others(model, measured, images, tmp_path):
    n = grouped.train_in_fp32(model, home=tmp_path)
    dtypes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _module, _, made, name=name: dtypes.update({name: made.dtype})
            )
    bf16(model.train(), images).sum().backward()
    stride_2 = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) == 2
    }
    assert n == len(stride_2) > 0
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == stride_2
    assert set(measured) == {"depthwise 3x3 / 1", "depthwise 3x3 / 2"}


def test_it_is_fp32s_convolution_exactly(measured, tmp_path):  # noqa: ARG001
    convolution = nn.Conv2d(8, 8, 3, stride=2, groups=8)
    plain = copy.deepcopy(convolution)
    grouped.train_in_fp32(convolution, home=tmp_path)
    x = torch.randn(2, 8, 9, 9).bfloat16()
    assert torch.equal(bf16(convolution.train(), x), plain(x.float()))
    assert bf16(convolution.eval(), x).dtype == torch.bfloat16


def test_keys_copies_and_evaluation_stay(model, measured, images, tmp_path):  # noqa: ARG001
    keys, before = list(model.state_dict()), bf16(model.eval(), images)
    names = [type(module).__name__ for module in model.modules()]
    grouped.train_in_fp32(model, home=tmp_path)
    assert list(model.state_dict()) == keys
    assert [type(module).__name__ for module in model.modules()] == names
    assert torch.equal(bf16(model.eval(), images), before)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(bf16(model.eval(), images), before)
    assert not bf16(other.eval(), images).any()


def test_a_machine_is_measured_once(model, measured, tmp_path):
    grouped.train_in_fp32(model, home=tmp_path)
    (kept,) = (tmp_path / "machines").glob("*.json")
    assert set(json.loads(kept.read_text())) == set(measured)
    asked = len(measured)
    grouped.train_in_fp32(model, home=tmp_path)
    assert len(measured) == asked
    torch.set_num_threads(torch.get_num_threads() + 1)
    try:
        grouped.train_in_fp32(model, home=tmp_path)
    finally:
        torch.set_num_threads(torch.get_num_threads() - 1)
    assert len(measured) == 2 * asked  # more threads are another machine


def test_measuring_draws_no_random_numbers(tmp_path, model):
    before = torch.get_rng_state()
    grouped.train_in_fp32(model, home=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_trains_in_fp32_can_be_named_and_set(model, measured, tmp_path):  # noqa: ARG001
    kinds = [type(module) for module in model.modules()]
    grouped.train_in_fp32(model, home=tmp_path)
    assert grouped.kinds_in_fp32(model) == ["depthwise 3x3 / 2"]
    grouped.compute_in_fp32(model, ["depthwise 3x3 / 1"])
    assert grouped.kinds_in_fp32(model) == ["depthwise 3x3 / 1"]
    assert grouped.compute_in_fp32(model, ()) == 0
    assert [type(module) for module in model.modules()] == kinds


CONTENTS = [b"", b"[]", b'{"depthwise 3x3 / 1": "x"}', b'{"depthwise 3x3 / 1": null}', b"\xff"]


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_file_is_measured_anew(model, measured, tmp_path, content):
    n = grouped.train_in_fp32(model, home=tmp_path)
    (kept,) = (tmp_path / "machines").glob("*.json")
    whole = kept.read_bytes()
    kept.write_bytes(content)
    assert grouped.train_in_fp32(model, home=tmp_path) == n
    assert kept.read_bytes() == whole
    assert len(measured) == 4


def test_a_disk_that_takes_nothing_stops_nothing(model, measured, tmp_path):
    (tmp_path / "machines").write_bytes(b"")  # no folder can be made there
    assert grouped.train_in_fp32(model, home=tmp_path) > 0
    assert set(measured) == {"depthwise 3x3 / 1", "depthwise 3x3 / 2"}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_a_network_has_an_example_that_is_measured(name):
    found = [
        module
        for module in timm.create_model(name).modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    ]
    assert bool(found) == (name != "test_resnet")
    for kind in {grouped.kind_of(module) for module in found}:
        assert grouped.kind_of(grouped._example(kind)) == kind
        assert 0.05 < grouped._slowdown(kind) < 100


def test_without_grouped_convolutions_nothing_is_measured(measured, tmp_path):
    model = timm.create_model("test_resnet")
    assert grouped.train_in_fp32(model, home=tmp_path) == 0
    assert measured == []
