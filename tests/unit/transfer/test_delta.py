"""DELTA against literal float64 transcriptions, its laws, and its hooks in real networks."""

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from nbtl_search.errors import DivergedError, SpecError
from nbtl_search.transfer.delta import attention, channel_importance, delta, feature_map_distance
from nbtl_search.transfer.feature_hooks import (
    INCEPTION_V4_HOOKS,
    FeatureHook,
    FeatureHooks,
    hooks_of,
)
from nbtl_search.transfer.source import frozen_copy

LAWS = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def maps(draw):
    """Two hooks of target and source maps, and attention that sums to 1."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.integers(1, 3))
    target, source, weights = {}, {}, {}
    for hook in ("low", "high"):
        shape = (batch, *(draw(st.integers(1, 4)) for _ in range(3)))
        scale = 10 ** draw(st.integers(-2, 2))
        target[hook], source[hook] = (
            scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        target[hook].requires_grad_()
        weights[hook] = torch.rand(shape[1], generator=generator, dtype=torch.float64).softmax(0)
    return target, source, weights


def literal(target, source, weights=None):
    """Omega and its gradient by loops over every number."""
    total, gradients = 0.0, {}
    for hook in target:
        b, c, h, w = target[hook].shape
        gradients[hook] = torch.zeros_like(target[hook])
        for i in range(b):
            for ch in range(c):
                factor = 1.0 if weights is None else c / (h * w) * weights[hook][ch].item()
                for y in range(h):
                    for x in range(w):
                        offset = (target[hook][i, ch, y, x] - source[hook][i, ch, y, x]).item()
                        total += 0.5 * factor * offset**2
                        gradients[hook][i, ch, y, x] = factor * offset
    return total, gradients


@LAWS
@given(maps())
def test_value_and_gradient_are_the_formulas(drawn):
    target, source, weights = drawn
    for value, expected in (
        (delta(target, source, weights), literal(target, source, weights)),
        (feature_map_distance(target, source), literal(target, source)),
    ):
        assert value.item() == pytest.approx(expected[0], rel=1e-12)
        got = torch.autograd.grad(value, list(target.values()))
        for gradient, wanted in zip(got, expected[1].values(), strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=0)


@LAWS
@given(maps())
def test_it_is_zero_with_zero_gradient_where_the_maps_are_equal(drawn):
    target, _, weights = drawn
    same = {hook: value.detach().clone() for hook, value in target.items()}
    for value in (delta(target, same, weights), feature_map_distance(target, same)):
        assert value.item() == 0
        assert all(not g.any() for g in torch.autograd.grad(value, list(target.values())))


@LAWS
@given(maps())
def test_equal_attention_leaves_the_plain_distance_over_positions(drawn):
    """The factor c is there for this: c * 1/c = 1."""
    target, source, weights = drawn
    for hook, w in weights.items():
        one = {hook: target[hook]}, {hook: source[hook]}
        equal = {hook: torch.full_like(w, 1 / len(w))}
        n_positions = math.prod(target[hook].shape[2:])
        plain = feature_map_distance(*one).item() / n_positions
        assert delta(*one, equal).item() == pytest.approx(plain, rel=1e-12)


@LAWS
@given(maps())
def test_the_mean_is_the_sum_over_the_batch_size(drawn):
    target, source, weights = drawn
    n = len(target["low"])
    mean = delta(target, source, weights, reduction="mean")
    assert mean.item() == pytest.approx(delta(target, source, weights).item() / n, rel=1e-12)
    mean = feature_map_distance(target, source, reduction="mean")
    assert mean.item() == pytest.approx(feature_map_distance(target, source).item() / n, rel=1e-12)


def test_no_gradient_reaches_the_source():
    source = torch.randn(2, 3, 2, 2, requires_grad=True)
    target = torch.randn(2, 3, 2, 2, requires_grad=True)
    delta({"a": target}, {"a": source}, {"a": torch.ones(3) / 3}).backward()
    assert source.grad is None
    assert target.grad is not None


def test_half_precision_maps_are_compared_in_float32():
    target = torch.randn(2, 3, 4, 4).bfloat16()
    source = torch.randn(2, 3, 4, 4).bfloat16()
    a = {"a": torch.ones(3) / 3}
    value = delta({"a": target}, {"a": source}, a)
    assert value.dtype == torch.float32
    wide = delta({"a": target.double()}, {"a": source.double()}, a)
    assert value.item() == pytest.approx(wide.item(), rel=1e-5)


def test_what_does_not_belong_together_is_refused():
    one, other = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4, 4)
    a = torch.ones(2) / 2
    with pytest.raises(SpecError, match="the same hooks"):
        delta({"a": one}, {"a": one}, {"b": a})
    with pytest.raises(SpecError, match="the same hooks"):
        feature_map_distance({}, {})
    with pytest.raises(SpecError, match=r"maps of 'a' have one shape"):
        delta({"a": one}, {"a": other}, {"a": a})


class TestAttention:
    @LAWS
    @given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
    def test_it_is_the_formula_and_sums_to_one(self, values):
        got = attention(torch.tensor(values, dtype=torch.float64))
        assert got.sum().item() == pytest.approx(1, abs=1e-12)
        assert bool((got > 0).all())
        mean = math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
        if std <= 1e-12 * max(map(abs, values)):
            return
        raised = [math.exp((v - mean) / std / 5) for v in values]
        expected = torch.tensor(raised, dtype=torch.float64) / math.fsum(raised)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)

    @LAWS
    @given(st.floats(-1e6, 1e6), st.integers(1, 2000))
    def test_equal_importances_give_equal_weights(self, value, n):
        got = attention(torch.full((n,), value, dtype=torch.float64))
        assert bool((got == 1 / n).all())

    def test_the_spread_is_the_populations(self):
        """Of (0, 1): std 1/2, not 0.71."""
        got = attention(torch.tensor([0.0, 1.0]))
        assert got[1].item() / got[0].item() == pytest.approx(math.exp(2 / 5))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_is_refused(self, bad):
        with pytest.raises(DivergedError, match="finite"):
            attention(torch.tensor([0.0, bad]))


NETWORKS = {
    "test_resnet": 64,
    "test_efficientnet": 64,
    "test_vit": 160,
    "mobilenetv2_100": 64,
    "swin_tiny_patch4_window7_224": 224,
}


@pytest.mark.parametrize(("name", "size_px"), NETWORKS.items())
def test_the_hooks_of_a_network_give_its_channels_first(name, size_px):
    model = timm.create_model(name, num_classes=3).eval()
    hooks = hooks_of(model)
    assert len(hooks) == 4
    with FeatureHooks(model, hooks) as recorded, torch.no_grad():
        model(torch.randn(2, 3, size_px, size_px))
        assert list(recorded.maps) == [hook.module for hook in hooks]
        assert [m.shape[:2] for m in recorded.maps.values()] == [(2, t.n_channels) for t in hooks]
        assert feature_map_distance(recorded.maps, recorded.maps).item() == 0


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_inception_v4_works_with_all_hooks_and_is_left_without_hooks():
    torch.manual_seed(0)
    model: Any = timm.create_model("inception_v4", num_classes=3)
    source = frozen_copy(model)
    hooks = hooks_of(model)
    assert hooks == INCEPTION_V4_HOOKS
    images = torch.randn(2, 3, 96, 96)
    with FeatureHooks(model, hooks) as target, FeatureHooks(source, hooks) as anchored:
        model(images)
        with torch.no_grad():
            source(images)
        shapes = [tuple(m.shape) for m in target.maps.values()]
        assert [shape[:2] for shape in shapes] == [(2, 64), (2, 384), (2, 1024), (2, 1536)]
        a = {hook.module: attention(torch.randn(hook.n_channels)) for hook in hooks}
        value = delta(target.maps, anchored.maps, a)
        # Batch norm in training mode: the maps differ although the weights are the same.
        assert value.item() > 0
        value.backward()
    gradient = model.get_submodule("features.0.conv").weight.grad
    assert gradient is not None
    assert gradient.any()
    assert all(p.grad is None for p in source.parameters())
    assert n_hooks(model) == n_hooks(source) == 0
    assert target.maps == {}


def test_hooks_are_removed_where_the_forward_pass_fails():
    model = timm.create_model("test_resnet", num_classes=3)
    with pytest.raises(RuntimeError), FeatureHooks(model, hooks_of(model)):
        model(torch.randn(2, 5, 32, 32))
    assert n_hooks(model) == 0


def test_models_without_feature_maps_are_refused():
    with pytest.raises(SpecError, match="feature_info"):
        hooks_of(nn.Linear(2, 2))
    with pytest.raises(SpecError, match="n >= 1"):
        hooks_of(nn.Linear(2, 2), n=0)
    model = nn.Sequential(nn.Linear(2, 2))
    with (
        pytest.raises(SpecError, match="is a feature map"),
        FeatureHooks(model, [FeatureHook("0", 2)]),
    ):
        model(torch.zeros(1, 2))


def test_a_source_never_changes():
    model = timm.create_model("test_resnet", num_classes=3).train()
    source = frozen_copy(model)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    assert model.training
    assert not any(module.training for module in source.modules())
    assert not any(p.requires_grad for p in source.parameters())
    source(torch.randn(2, 3, 64, 64))
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in source.state_dict().items())


class TestImportance:
    def network(self):
        torch.manual_seed(0)
        model: Any = timm.create_model("test_resnet", num_classes=0).double().train()
        head = nn.Linear(model.num_features, 3).double()
        hooks = (hooks_of(model)[0], hooks_of(model)[-1])
        batches = [
            (torch.randn(b, 3, 32, 32, dtype=torch.float64), torch.randint(3, (b,))) for b in (4, 3)
        ]
        return model, head, hooks, batches

    def test_it_is_the_rise_of_the_loss_with_a_silent_channel(self):
        model, head, hooks, batches = self.network()
        results = list(channel_importance(model, head, hooks, batches, n_at_once=5))
        assert [(r.module, r.channel) for r in results] == [
            (hook.module, channel) for hook in hooks for channel in range(hook.n_channels)
        ]
        model.eval()
        for r in (results[0], results[7], results[-1]):
            rises = []
            for images, labels in batches:
                losses = []
                for silent in (False, True):

                    def hook(_m, _i, output, silent=silent, channel=r.channel):
                        mask = torch.ones_like(output)
                        mask[:, channel] = 0 if silent else 1
                        return output * mask

                    handle = model.get_submodule(r.module).register_forward_hook(hook)
                    losses.append(functional.cross_entropy(head(model(images)), labels).item())
                    handle.remove()
                rises.append(losses[1] - losses[0])
            assert r.value == pytest.approx(sum(rises) / 2, rel=1e-9, abs=1e-12)
            assert r.value != 0

    def test_it_can_be_resumed_and_leaves_everything_as_it_was(self):
        model, head, hooks, batches = self.network()
        modes = [m.training for m in model.modules()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        measuring = channel_importance(model, head, hooks, batches)
        first = [next(measuring) for _ in range(11)]
        assert [m.training for m in model.modules()] == modes
        assert n_hooks(model) == 0
        done = {(r.module, r.channel) for r in first}
        rest = list(channel_importance(model, head, hooks, batches, done=done))
        assert [*first, *rest] == list(channel_importance(model, head, hooks, batches))
        assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())

    def test_nothing_to_measure_with_is_refused(self):
        model, head, hooks, batches = self.network()
        with pytest.raises(SpecError, match="got 0 batches"):
            next(channel_importance(model, head, hooks, []))
        with pytest.raises(SpecError, match="n_at_once >= 1"):
            next(channel_importance(model, head, hooks, batches, n_at_once=0))
