"""The kept source classifier: norm and scale by its formula, layers, export and rebuilding."""

import copy
import json
import math
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbtl_search.errors import SpecError, WeightsError
from nbtl_search.spec import Dials
from nbtl_search.transfer.kept_architecture import config_entries
from nbtl_search.transfer.layers import layers_of
from nbtl_search.transfer.learning_rates import learning_rate_groups
from nbtl_search.transfer.norm_scale import NormScale
from nbtl_search.transfer.penalties import l2sp
from nbtl_search.transfer.source_classifier import (
    KeptClassifier,
    Shape,
    append_layers,
    kept_layers,
    rebuilt,
    shape_of,
)

LAWS = settings(max_examples=30, deadline=None, derandomize=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def activations(draw):
    seeded = generator(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    scale = 10 ** draw(st.floats(-3, 3))
    x = scale * torch.randn(shape, generator=seeded, dtype=torch.float64)
    module = NormScale(shape[1], scale=2.5).double()
    with torch.no_grad():
        module.gamma.copy_(torch.randn(shape[1], generator=seeded))
    upstream = torch.randn(shape, generator=seeded, dtype=torch.float64)
    return module, x.requires_grad_(), upstream


class TestNormScale:
    @LAWS
    @given(activations())
    def test_value_and_gradients_are_the_formula(self, drawn):
        module, x, g = drawn
        y = module(x)
        dx, dgamma = torch.autograd.grad(y, [x, module.gamma], g)
        n_units = x.shape[1]
        expected_dgamma = [0.0] * n_units
        for i, row in enumerate(x.tolist()):
            norm = math.sqrt(math.fsum(v * v for v in row) + 1e-6)
            gamma, up = module.gamma.tolist(), g[i].tolist()
            inner = math.fsum(gamma[k] * up[k] * row[k] for k in range(n_units))
            for k in range(n_units):
                assert y[i, k].item() == pytest.approx(gamma[k] * row[k] / norm, rel=1e-12)
                wanted = gamma[k] * up[k] / norm - row[k] * inner / norm**3
                assert dx[i, k].item() == pytest.approx(wanted, rel=1e-8, abs=1e-9 / norm)
                expected_dgamma[k] += up[k] * row[k] / norm
        assert dgamma.tolist() == pytest.approx(expected_dgamma, rel=1e-9, abs=1e-12)

    @LAWS
    @given(activations(), st.floats(1, 1e4))
    def test_the_scale_of_its_input_makes_no_difference(self, drawn, factor):
        module, x, _ = drawn
        # Far above eps, which is there for samples that are zero.
        large = x.detach() * 1e3 / x.detach().norm(dim=1, keepdim=True)
        torch.testing.assert_close(module(factor * large), module(large), rtol=1e-9, atol=1e-12)

    def test_every_sample_has_the_scale_as_norm_at_first(self):
        norms = NormScale(1000, scale=math.sqrt(1000))(torch.randn(5, 1000)).norm(dim=1)
        assert norms.tolist() == pytest.approx([math.sqrt(1000)] * 5, rel=1e-5)

    def test_a_sample_of_zeros_has_a_value_and_a_gradient(self):
        x = torch.zeros(1, 3, requires_grad=True)
        NormScale(3, scale=1.0)(x).sum().backward()
        assert x.grad is not None
        assert bool(torch.isfinite(x.grad).all())

    def test_resetting_brings_the_initial_scale_back(self):
        module = NormScale(3, scale=2.5)
        nn.init.zeros_(module.gamma)
        module.reset_parameters()
        assert module.gamma.tolist() == [2.5] * 3
        assert "scale=2.5" in repr(module)


def kept(name: str = "test_resnet", *, hidden: tuple[int, ...] = (), seed: int = 0):
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=11).eval()
    plain = copy.deepcopy(model)
    layers = append_layers(model, n_classes=3, hidden=hidden, generator=generator(seed))
    return model, plain, layers


@pytest.mark.parametrize("hidden", [(), (8,), (8, 5)])
def test_the_logits_are_the_chain_on_top_of_the_source_logits(hidden):
    model, plain, layers = kept(hidden=hidden)
    images = torch.randn(2, 3, 64, 64)
    x = plain(images)
    appended = [module for _, module in layers.head.modules]
    norm_scales = [module for module in appended if isinstance(module, NormScale)]
    linears = [module for module in appended if isinstance(module, nn.Linear)]
    assert [m.n_units for m in norm_scales] == [11, *hidden]
    assert [m.out_features for m in linears] == [*hidden, 3]
    for i, linear in enumerate(linears):
        x = norm_scales[i].gamma * x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt()
        x = linear(x.relu() if i < len(hidden) else x)
    torch.testing.assert_close(model(images), x)
    assert model(images).shape == (2, 3)
    assert model.num_classes == 3
    assert isinstance(model.get_classifier(), KeptClassifier)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "mobilenetv2_100", "convnext_atto", "inception_v4"]
)
def test_the_source_classifier_is_the_last_block_and_the_head_is_new(name):
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=11)
    n_blocks = layers_of(model).n_blocks
    kept_classifier = KeptClassifier(model.get_classifier(), n_classes=3)
    path = next(n for n, m in model.named_modules() if m is kept_classifier.source)
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, kept_classifier)
    layers = kept_layers(model)
    assert layers.n_blocks == n_blocks + 1
    assert [n for n, _ in layers.blocks[-1].parameters] == [
        f"{path}.source.weight",
        f"{path}.source.bias",
    ]
    assert [n for n, _ in layers.head.parameters] == [
        f"{path}.appended.0.gamma",
        f"{path}.appended.1.weight",
        f"{path}.appended.1.bias",
    ]
    every = [n for block in (*layers.blocks, layers.head) for n, _ in block.parameters]
    assert sorted(every) == sorted(n for n, _ in model.named_parameters())


def test_the_source_classifier_has_the_high_rate_and_may_be_under_l2sp():
    _, _, layers = kept()
    dials = Dials(lr_high=0.02, lr_head_ratio=3, n_low=2, lr_low_ratio=0.1, alpha=0.1, beta=0.2)
    rates = {
        name: group.lr
        for group in learning_rate_groups(layers, dials)
        for name, _ in group.parameters
    }
    assert rates["fc.source.weight"] == 0.02
    assert rates["fc.appended.1.weight"] == pytest.approx(0.06)
    anchors = {n: p.detach().clone() for block in layers.pretrained(1) for n, p in block.parameters}
    assert "fc.source.weight" in anchors
    assert "fc.appended.1.weight" not in anchors
    for n_l2sp, expected in ((layers.n_blocks, True), (layers.n_blocks - 1, False)):
        penalty = l2sp(layers, dials.replace(n_l2sp=n_l2sp), anchors=anchors)
        assert ("fc.source.weight" in {pull.name for pull in penalty.sp}) is expected


def test_what_is_new_depends_on_the_generator_alone_and_what_is_old_stays():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=11)
        plain = {name: value.clone() for name, value in model.state_dict().items()}
        before = torch.get_rng_state()
        append_layers(model, n_classes=3, hidden=(8,), generator=generator(seed))
        assert torch.equal(torch.get_rng_state(), before)
        states.append(model.state_dict())
        for name, value in plain.items():
            now = name.replace("fc.", "fc.source.") if name.startswith("fc.") else name
            assert torch.equal(states[-1][now], value)
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(states[0]["fc.appended.2.weight"], states[2]["fc.appended.2.weight"])


@pytest.mark.parametrize("hidden", [(), (8, 5)])
def test_a_state_dict_in_a_file_is_enough_to_rebuild(hidden, tmp_path):
    model, _, _ = kept(hidden=hidden)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    state = safetensors.torch.load_file(file)
    assert shape_of(state) == Shape(11, hidden, 3)
    before = torch.get_rng_state()
    again: nn.Module = rebuilt("test_resnet", state).eval()
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), model(images))
    assert again.state_dict().keys() == model.state_dict().keys()


def test_timm_alone_refuses_the_file_rather_than_loading_half_of_it(tmp_path):
    model, _, _ = kept()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(RuntimeError, match=r"fc\.appended"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("hidden", [(), (8, 5)])
def test_timm_loads_an_export_where_this_package_is_imported(hidden, tmp_path):
    model, _, _ = kept(hidden=hidden)
    state = model.state_dict()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    config = {"pretrained_cfg": {"input_size": [3, 64, 64], "num_classes": 3}}
    config |= config_entries("test_resnet", state)
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    loaded: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images), model(images))
    assert loaded.num_classes == 3
    assert loaded.pretrained_cfg["input_size"] == [3, 64, 64]
    assert config_entries("test_resnet", timm.create_model("test_resnet").state_dict()) == {}


def test_a_state_of_something_else_is_refused():
    with pytest.raises(WeightsError, match="kept classifier"):
        rebuilt("test_resnet", timm.create_model("test_resnet").state_dict())
    model, _, _ = kept()
    with pytest.raises(WeightsError, match="must be of model 'test_vit'") as caught:
        rebuilt("test_vit", model.state_dict())
    assert "\n" not in str(caught.value)


def test_what_cannot_be_kept_is_refused_and_left_as_it_was():
    headless = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(SpecError, match="one linear layer"):
        append_layers(headless, n_classes=3, generator=generator())
    model: Any = timm.create_model("test_resnet", num_classes=11)
    for sizes in ({"n_classes": 0}, {"n_classes": 3, "hidden": (0,)}):
        with pytest.raises(SpecError, match=">= 1"):
            append_layers(model, **sizes, generator=generator())
    with pytest.raises(SpecError, match="call append_layers first"):
        kept_layers(model)
    assert isinstance(model.fc, nn.Linear)
    append_layers(model, n_classes=3, generator=generator())
    with pytest.raises(SpecError, match="KeptClassifier"):
        append_layers(model, n_classes=3, generator=generator())


def test_the_source_classifier_learns_and_so_does_what_is_above_and_below():
    model, _, layers = kept(hidden=(8,))
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for name, parameter in (*layers.blocks[-1].parameters, *layers.head.parameters):
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert model.conv1[0].weight.grad.any()
