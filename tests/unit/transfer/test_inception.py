"""Every non-binary setting of Inception-v4, against a transcription that knows only names."""

import itertools
import math
import re

import pytest
import timm
import torch

from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials
from nbtl_search.transfer.layers import Layers, layers_of
from nbtl_search.transfer.learning_rates import learning_rate_groups
from nbtl_search.transfer.penalties import l2sp
from nbtl_search.transfer.reinit import reinitialise

REINIT, COUNTS = range(1, 13), range(23)
HEAD = 22


@pytest.fixture(scope="module")
def meta_model():
    with torch.device("meta"):
        return timm.create_model("inception_v4", num_classes=47)


@pytest.fixture(scope="module")
def layers(meta_model) -> Layers:
    return layers_of(meta_model)


@pytest.fixture(scope="module")
def names(meta_model) -> list[str]:
    return [name for name, _ in meta_model.named_parameters()]


def index(name: str) -> int:
    """The transcription's whole knowledge: features.<index>. or the head."""
    found = re.match(r"features\.(\d+)\.", name)
    if found is None:
        assert name in {"last_linear.weight", "last_linear.bias"}
        return HEAD
    return int(found[1])


def is_norm(name: str) -> bool:
    return "bn" in name


def test_the_network_is_the_one_of_the_paper(layers, names):
    assert [block.name for block in layers.blocks] == [f"features.{i}" for i in range(22)]
    assert len(names) == 449
    assert sum(is_norm(name) for name in names) == 298
    sizes = [sum(p.numel() for _, p in block.parameters) for block in layers.blocks]
    inception_a, inception_b, inception_c = [317_632] * 4, [2_936_256] * 7, [4_553_088] * 3
    stem = [928, 9_280, 18_560, 55_488, 189_312, 332_160]
    assert sizes == [*stem, *inception_a, 2_306_112, *inception_b, 2_747_392, *inception_c]
    assert sum(p.numel() for _, p in layers.head.parameters) == 1537 * 47


def test_kinds_agree_with_names(layers):
    for block in (*layers.blocks, layers.head):
        for name, kind in block.kinds.items():
            expected = "norm" if is_norm(name) else "other" if name.endswith("bias") else "kernel"
            assert kind == expected, name


def test_learning_rate_groups_for_every_n_low(layers, names):
    for n_low in COUNTS:
        dials = Dials(n_low=n_low, lr_high=0.02, lr_low_ratio=0.5, lr_head_ratio=4.0)
        expected = {
            name: 0.08 if index(name) == HEAD else 0.01 if index(name) < n_low else 0.02
            for name in names
        }
        groups = learning_rate_groups(layers, dials)
        got = [(name, lr) for _, lr, parameters in groups for name, _ in parameters]
        assert len(got) == len(names), "each parameter exactly once"
        assert dict(got) == pytest.approx(expected)
        assert all(parameters for _, _, parameters in groups), "no empty group"
        assert [group.name for group in groups] == (
            ["head", "high"] if n_low == 0 else ["head", "low"] if n_low == 22
            else ["head", "high", "low"]
        )  # fmt: skip


def test_regularised_sets_for_every_setting(layers, names):
    """reinit_layers 1..12 x n_low 0..22 x n_l2sp 0..22: n_low must make no difference."""
    anchors = dict.fromkeys(names, torch.empty(0))
    position = {name: index(name) for name in names}
    covered = [name for name in names if not is_norm(name)]
    for n, n_l2sp in itertools.product(REINIT, COUNTS):
        sp = {name for name in covered if position[name] < min(n_l2sp, 22 - (n - 1))}
        l2 = set(covered) - sp
        for n_low in COUNTS:
            dials = Dials(reinit_layers=n, n_low=n_low, n_l2sp=n_l2sp, alpha=0.1, beta=0.2)
            penalty = l2sp(layers, dials, anchors=anchors)
            assert {pull.name for pull in penalty.sp} == sp
            assert {pull.name for pull in penalty.l2} == l2
            assert len(penalty.sp) + len(penalty.l2) == len(covered)


def test_the_authors_sets_for_every_setting(layers, names):
    """The released code: threshold 22 - N, n_low layers, and its own rates."""
    anchors = dict.fromkeys(names, torch.empty(0))
    position = {name: index(name) for name in names}
    covered = [name for name in names if not is_norm(name)]
    for n, n_low in itertools.product(REINIT, COUNTS[1:]):
        expected = {}
        for name in covered:
            if position[name] < n_low and position[name] < 22 - n:
                expected[name] = 0.04 if name == "features.0.conv.weight" else 0.02
            else:
                expected[name] = 0.0005
        for n_l2sp in COUNTS[1:]:
            dials = Dials(reinit_layers=n, n_low=n_low, n_l2sp=n_l2sp, alpha=0.7, beta=0.7)
            penalty = l2sp(layers, dials, anchors=anchors, compat="authors", scope="all")
            rates = {pull.name: pull.rate for pull in (*penalty.sp, *penalty.l2)}
            assert rates == expected
            assert all(pull.anchor is not None for pull in penalty.sp)
            assert all(pull.anchor is None for pull in penalty.l2)


def test_where_the_authors_code_would_crash_or_has_no_regulariser(layers, names):
    anchors = dict.fromkeys(names, torch.empty(0))
    off = l2sp(layers, Dials(n_low=8, n_l2sp=0), anchors=anchors, compat="authors")
    assert (off.sp, off.l2) == ((), ())
    one_rate = l2sp(layers, Dials(n_low=0, n_l2sp=14), anchors=anchors, compat="authors")
    three = l2sp(layers, Dials(n_low=14, n_l2sp=14), anchors=anchors, compat="authors")
    assert one_rate == three


def test_reinitialised_tensors_for_every_n():
    model = timm.create_model("inception_v4", num_classes=10)
    layers = layers_of(model)
    state = model.state_dict()
    for n in REINIT:
        for value in state.values():
            value.fill_(7)
        before = torch.get_rng_state()
        reinitialise(layers, n, generator=torch.Generator().manual_seed(n))
        assert torch.equal(torch.get_rng_state(), before)
        changed = {name for name, value in state.items() if not bool((value == 7).all())}
        assert changed == {
            name for name in state if not name.startswith("features.") or index(name) > 22 - n
        }
        for name in changed:
            check_fresh(name, state[name], fan_in=fan_in(name, state))


def fan_in(name: str, state: dict[str, torch.Tensor]) -> int:
    if name == "last_linear.bias":
        return 1536
    return state[name][0].numel() if state[name].dim() > 1 else 0


def check_fresh(name: str, value: torch.Tensor, *, fan_in: int) -> None:
    if is_norm(name):
        expected = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
        assert bool((value == expected.get(name.rpartition(".")[2], 0)).all()), name
        return
    bound = 1 / math.sqrt(fan_in)
    assert value.abs().max() <= bound, name
    if value.numel() > 1000:
        assert value.abs().max() > 0.99 * bound, name
        assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name


def test_a_layer_is_drawn_alike_however_many_are_reset():
    model = timm.create_model("inception_v4", num_classes=10)
    layers, kept = layers_of(model), []
    for n in (2, 4):
        reinitialise(layers, n, generator=torch.Generator().manual_seed(5))
        kept.append([p.clone() for b in (layers.head, layers.blocks[21]) for _, p in b.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


@pytest.mark.parametrize("n", [0, 24])
def test_an_impossible_number_of_layers_is_refused(layers, n):
    with pytest.raises(SpecError, match=rf"1 <= reinit_layers <= 23 .* got {n};"):
        reinitialise(layers, n, generator=torch.Generator())


def test_counts_beyond_the_blocks_mean_all(layers, names):
    anchors = dict.fromkeys(names, torch.empty(0))
    assert learning_rate_groups(layers, Dials(n_low=99)) == learning_rate_groups(
        layers, Dials(n_low=22)
    )
    many, all_ = (
        l2sp(layers, Dials(n_l2sp=n, alpha=0.1, beta=0.1), anchors=anchors) for n in (99, 22)
    )
    assert many == all_
