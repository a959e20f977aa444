"""Stochastic normalisation: a float64 transcription, its limits p = 0 and 1, and conversion."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nbtl_search.errors import SpecError
from nbtl_search.network.device import seeded
from nbtl_search.transfer.layers import layers_of
from nbtl_search.transfer.stochnorm import convert, restore, stochastic_normalisation

EPS = 1e-3


def transcription(x, s, running_mean, running_var, weight, bias, *, momentum, eps):
    """The formula as it stands; autograd sees the batch's statistics and no running ones."""
    dims = [0, *range(2, x.dim())]
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, var = x.mean(dims), x.var(dims, correction=0)
    z0 = (x - running_mean.view(shape)) / (running_var.view(shape) + eps).sqrt()
    z1 = (x - mean.view(shape)) / (var.view(shape) + eps).sqrt()
    z = (1 - s.view(shape)) * z0 + s.view(shape) * z1
    y = weight.view(shape) * z + bias.view(shape)
    unbiased = x.detach().var(dims)
    new_mean = (1 - momentum) * running_mean + momentum * mean.detach()
    return y, new_mean, (1 - momentum) * running_var + momentum * unbiased


def inputs(shape, seed, dtype=torch.float64):
    """Return x, running statistics, weight and bias, all of them unlike their defaults."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size):
        return torch.randn(*size, generator=generator, dtype=dtype)

    x = 2 * drawn(*shape) + drawn(1, shape[1], *[1] * (len(shape) - 2))
    if len(shape) == 4 and seed % 2:
        x = x.to(memory_format=torch.channels_last)
    running = drawn(shape[1]), drawn(shape[1]).exp()
    return x.requires_grad_(), running, drawn(shape[1]).requires_grad_(), drawn(shape[1])


@settings(max_examples=60, derandomize=True)
@given(
    shape=st.sampled_from([(5, 7), (2, 3), (3, 4, 5), (1, 6, 2, 3), (4, 5, 3, 2)]),
    seed=st.integers(0, 2**32),
    p=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    momentum=st.sampled_from([0.1, 0.01, 1.0]),
)
def test_value_gradient_and_running_statistics_are_those_of_the_formula(shape, seed, p, momentum):
    x, (mean, var), weight, bias = inputs(shape, seed)
    bias.requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    s = (torch.rand(shape[1], generator=torch.Generator().manual_seed(seed)) < p).double()
    expected, new_mean, new_var = transcription(
        x, s, mean.clone(), var.clone(), weight, bias, momentum=momentum, eps=EPS
    )
    got = stochastic_normalisation(
        x,
        mean,
        var,
        weight,
        bias,
        p=p,
        momentum=momentum,
        eps=EPS,
        generator=generator,
        training=True,
    )
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean, new_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(var, new_var, rtol=1e-12, atol=1e-14)
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(got, (x, weight, bias), g)
    theirs = torch.autograd.grad(expected, (x, weight, bias), g)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_the_gradient_uses_the_variance_from_before_the_update():
    x, (mean, var), weight, bias = inputs((8, 3, 2, 2), 1)
    before = var.clone()
    y = stochastic_normalisation(
        x, mean, var, weight, bias, p=0.0, momentum=0.9, eps=EPS, training=True
    )
    assert not torch.allclose(var, before)
    (got,) = torch.autograd.grad(y.sum(), x)
    expected = (weight / (before + EPS).sqrt()).view(1, -1, 1, 1).expand_as(x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_weight_and_bias_may_be_missing():
    x, (mean, var), _, _ = inputs((4, 3, 2, 2), 2)
    y = stochastic_normalisation(
        x, mean, var, None, None, p=1.0, momentum=0.1, eps=0.0, training=True
    )
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-12, rtol=0)
    y.square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-9, rtol=0)


def test_a_gradient_spread_over_all_positions_is_right():
    x, (mean, var), weight, bias = inputs((4, 5, 3, 3), 3)
    y = stochastic_normalisation(
        x, mean, var, weight, bias, p=0.5, momentum=0.1, eps=EPS, training=True
    )
    spread = torch.randn(4, 5, 1, 1, dtype=torch.float64).expand_as(y)
    (got,) = torch.autograd.grad(y, x, spread, retain_graph=True)
    (expected,) = torch.autograd.grad(y, x, spread.contiguous())
    torch.testing.assert_close(got, expected)


def test_a_frozen_input_asks_for_no_gradient():
    x, (mean, var), weight, bias = inputs((4, 5, 3, 3), 3)
    y = stochastic_normalisation(
        x.detach(), mean, var, weight, bias, p=0.5, momentum=0.1, eps=EPS, training=True
    )
    (gradient,) = torch.autograd.grad(y.square().sum(), weight)
    assert gradient.abs().sum() > 0


def test_bf16_activations_keep_float32_statistics():
    x, (mean, var), weight, bias = inputs((16, 6, 5, 5), 5, torch.float32)
    kept, half = (mean.clone(), var.clone()), x.detach().bfloat16().requires_grad_()
    g = torch.randn(x.shape)
    grads, ends = [], []
    for z, statistics in ((x, (mean, var)), (half, kept)):
        y = stochastic_normalisation(
            z,
            *statistics,
            weight,
            bias,
            p=0.5,
            momentum=0.1,
            eps=EPS,
            generator=torch.Generator().manual_seed(1),
            training=True,
        )
        assert y.dtype == z.dtype
        ends.append(y.float())
        grads.append(torch.autograd.grad(y, z, g.to(y.dtype))[0].float())
    assert kept[0].dtype == torch.float32
    torch.testing.assert_close(kept[1], var, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(ends[1], ends[0], rtol=3e-2, atol=8e-2)
    torch.testing.assert_close(grads[1], grads[0], rtol=3e-2, atol=8e-2)


def test_one_value_per_channel_is_refused_and_changes_nothing():
    x, (mean, var), weight, bias = inputs((1, 3, 1, 1), 0)
    kept = mean.clone(), var.clone()
    with pytest.raises(SpecError, match="more than 1 value per channel"):
        stochastic_normalisation(
            x, mean, var, weight, bias, p=0.5, momentum=0.1, eps=EPS, training=True
        )
    assert torch.equal(mean, kept[0])
    assert torch.equal(var, kept[1])


def pretrained_like(model, seed=0):
    """Give every batch norm statistics and weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def small(act_layer=nn.ReLU):
    return pretrained_like(
        nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 4, 3),
            BatchNormAct2d(4, eps=EPS, act_layer=act_layer, drop_layer=nn.Dropout),
            nn.Flatten(),
            nn.Linear(16, 5),
            nn.BatchNorm1d(5, momentum=None),
        )
    )


IMAGES = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def trained(model, *, seed=None):
    """Return output, gradients and buffers after a forward and a backward pass in training."""
    model.train().zero_grad()
    if seed is not None:
        with seeded(seed):
            y = model(IMAGES)
    else:
        y = model(IMAGES.to(next(model.parameters()).dtype))
    y.sin().sum().backward()
    return y, [p.grad.clone() for p in model.parameters()], [b.clone() for b in model.buffers()]


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(
        (ours[0], *ours[1], *ours[2]), (theirs[0], *theirs[1], *theirs[2]), strict=True
    ):
        torch.testing.assert_close(a, b, **tolerance)


def test_p_1_is_batch_norm_in_every_kind_of_module():
    plain = small().double()
    plain[3].drop = nn.Identity()
    stochastic = copy.deepcopy(plain)
    convert(stochastic, p=1.0)
    for _ in range(3):
        assert_same(trained(stochastic), trained(plain), rtol=1e-9, atol=1e-11)


def test_conversion_keeps_every_object_and_every_key_and_is_undone():
    model = small(act_layer=nn.SiLU)
    keys = list(model.state_dict())
    own = [id(t) for t in (*model.parameters(), *model.buffers(), *model.modules())]
    classes = [type(module) for module in model.modules()]
    convert(model, p=0.3)
    assert list(model.state_dict()) == keys
    assert [id(t) for t in (*model.parameters(), *model.buffers(), *model.modules())] == own
    assert [m.p for m in model.modules() if isinstance(m, _BatchNorm)] == [0.3] * 3
    assert "p=0.3" in repr(model[1])
    assert isinstance(model[3].act, nn.SiLU)
    convert(model, p=0.7)
    assert [m.p for m in copy.deepcopy(model) if isinstance(m, _BatchNorm)] == [0.7] * 3
    restore(model)
    assert [type(module) for module in model.modules()] == classes
    assert not any(hasattr(module, "p") for module in model if isinstance(module, _BatchNorm))
    assert list(model.state_dict()) == keys


def test_in_evaluation_it_is_batch_norm_before_and_after():
    model = small().eval()
    expected = model(IMAGES)
    convert(model, p=0.5)
    assert torch.equal(model(IMAGES), expected)
    trained(model, seed=1)
    learnt = model.eval()(IMAGES)
    assert not torch.allclose(learnt, expected)
    state = model.state_dict()
    restore(model)
    assert torch.equal(model(IMAGES), learnt)
    other = small()
    other.load_state_dict(state)
    assert torch.equal(other.eval()(IMAGES), learnt)


def test_masks_and_drop_follow_the_seed_of_the_update():
    model = small()
    convert(model, p=0.5)
    runs = [trained(copy.deepcopy(model), seed=seed) for seed in (7, 7, 8)]
    assert_same(runs[0], runs[1], rtol=0, atol=0)
    assert not torch.allclose(runs[0][0], runs[2][0])


def test_a_frozen_module_in_evaluation_stays_as_it_is():
    model = small()
    convert(model, p=0.5)
    model.train()
    model[1].eval()
    kept = model[1].running_mean.clone()
    model(IMAGES)
    assert torch.equal(model[1].running_mean, kept)
    assert model[1].num_batches_tracked == 0
    assert model[3].num_batches_tracked == 1


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(p):
    model = small()
    with pytest.raises(SpecError, match="0 <= p <= 1"):
        convert(model, p=p)
    assert type(model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    "odd", [nn.BatchNorm3d(2), nn.SyncBatchNorm(2), nn.BatchNorm2d(2, track_running_stats=False)]
)
def test_other_kinds_are_refused_and_nothing_is_changed(odd):
    model = nn.Sequential(nn.BatchNorm2d(3), odd)
    with pytest.raises(SpecError, match=f"{type(odd).__name__} at '1'"):
        convert(model, p=0.5)
    assert type(model[0]) is nn.BatchNorm2d


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(SpecError, match="with batch norm, got none in Sequential"):
        convert(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), p=0.5)


def test_layers_and_kinds_are_the_same_after_conversion():
    model = timm.create_model("test_efficientnet", num_classes=4)
    layers = layers_of(model)
    convert(model, p=0.5)
    after = layers_of(model)
    assert [b.name for b in after.blocks] == [b.name for b in layers.blocks]
    assert [b.kinds for b in after.blocks] == [b.kinds for b in layers.blocks]
    assert any("norm" in b.kinds.values() for b in after.blocks)


def test_inception_v4_keeps_all_its_activations():
    torch.manual_seed(0)
    # In float32 even a change of the images by 1e-7 of their values moves these logits by 0.1.
    plain = timm.create_model("inception_v4", num_classes=5).double()
    stochastic = copy.deepcopy(plain)
    convert(stochastic, p=1.0)
    norms = [m for m in stochastic.modules() if isinstance(m, BatchNormAct2d)]
    assert len(norms) == 149
    assert all(isinstance(m.act, nn.ReLU) for m in norms)
    images = torch.randn(3, 3, 96, 96, dtype=torch.float64)
    ours, theirs = (model.train()(images) for model in (stochastic, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    pairs = zip(stochastic.buffers(), plain.buffers(), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    convert(stochastic, p=0.5)
    seen: list[float] = []
    for module in norms:
        module.register_forward_hook(lambda _m, _x, y: seen.append(y.detach().min().item()))
    stochastic(images)
    assert len(seen) == 149
    assert min(seen) == 0
