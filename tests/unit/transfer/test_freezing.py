"""Layer-wise freezing: what stays as it is in a training step, and what leaves the optimiser."""

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials
from nbtl_search.transfer.freezing import (
    check_frozen,
    freeze,
    trainable_groups,
    trainable_penalty,
)
from nbtl_search.transfer.layers import Block, Layers, layers_of
from nbtl_search.transfer.learning_rates import learning_rate_groups
from nbtl_search.transfer.penalties import l2sp

LAWS = settings(max_examples=60, deadline=None, derandomize=True)


def network(name: str = "test_resnet") -> tuple[nn.Module, Layers]:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            # No parameter may be 0 (as biases and some gammas start), where nothing would move it.
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model, layers_of(model)


def step(model: nn.Module, layers: Layers, frozen, dials: Dials, images: torch.Tensor) -> None:
    """One update as the engine does it."""
    anchors = {n: p.detach() + 1 for block in layers.blocks for n, p in block.parameters}
    penalty = trainable_penalty(l2sp(layers, dials, anchors=anchors))
    groups = trainable_groups(learning_rate_groups(layers, dials))
    optimiser = torch.optim.SGD(
        [{"params": [p for _, p in g.parameters], "lr": g.lr} for g in groups], weight_decay=0.1
    )
    model.train()
    frozen.hold()
    model(images).logsumexp(dim=1).sum().backward()
    penalty.add_gradient_()
    optimiser.step()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_a_training_step_changes_all_but_the_frozen_blocks(name):
    model, layers = network(name)
    n = 3
    frozen = freeze(layers, n)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    size_px = 160 if name == "test_vit" else 64
    dials = Dials(n_low=4, lr_high=0.1, n_l2sp=5, alpha=0.1, beta=0.1)
    step(model, layers, frozen, dials, torch.randn(4, 3, size_px, size_px))
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    still = {key for block in layers.blocks[:n] for key in _keys(block)}
    learning = {p for b in (*layers.blocks[n:], layers.head) for p, _ in b.parameters}
    assert changed & still == set()
    assert learning <= changed
    assert all(p.grad is None for block in layers.blocks[:n] for _, p in block.parameters)


def _keys(block: Block) -> set[str]:
    """Parameters, and the running statistics beside them."""
    parameters = {name for name, _ in block.parameters}
    buffers = {
        f"{owner}.{b}" for owner, m in block.modules for b, _ in m.named_buffers(recurse=False)
    }
    return parameters | buffers


def test_without_holding_the_statistics_would_move():
    """What `hold` is for."""
    model, layers = network()
    frozen = freeze(layers, 3)
    norm: Any = next(m for _, m in frozen.blocks[0].modules if isinstance(m, nn.BatchNorm2d))
    model.train()
    before = norm.running_mean.clone()
    model(torch.randn(4, 3, 64, 64))
    assert not torch.equal(norm.running_mean, before)
    frozen.hold()
    assert not norm.training
    assert model.training


def test_holding_leaves_the_others_in_training_mode():
    model, layers = network("test_vit")
    frozen = freeze(layers, 2)
    model.train()
    frozen.hold()
    # The model itself owns the first block's class token.
    assert model.training
    held = {id(m) for block in frozen.blocks for _, m in block.modules}
    assert all(m.training for m in model.modules() if id(m) not in held and list(m.parameters()))


MODEL, LAYERS = network("mobilenetv2_100")


@LAWS
@given(
    n=st.integers(0, 17),
    n_low=st.integers(0, 20),
    n_l2sp=st.integers(0, 20),
    reinit_layers=st.integers(1, 3),
)
def test_frozen_parameters_leave_the_groups_and_the_penalty(n, n_low, n_l2sp, reinit_layers):
    for parameter in MODEL.parameters():
        parameter.requires_grad = True
    dials = Dials(n_low=n_low, n_l2sp=n_l2sp, reinit_layers=reinit_layers, alpha=0.1, beta=0.1)
    anchors = {name: p.detach() for b in LAYERS.blocks for name, p in b.parameters}
    full, penalty = learning_rate_groups(LAYERS, dials), l2sp(LAYERS, dials, anchors=anchors)
    n = min(n, len(LAYERS.pretrained(reinit_layers)))
    freeze(LAYERS, n, reinit_layers=reinit_layers)
    frozen = {name for block in LAYERS.blocks[:n] for name, _ in block.parameters}
    groups = trainable_groups(full)
    assert all(group.parameters for group in groups)
    rates = {name: (g.name, g.lr) for g in full for name, _ in g.parameters if name not in frozen}
    assert {name: (g.name, g.lr) for g in groups for name, _ in g.parameters} == rates
    rest = trainable_penalty(penalty)
    assert [p.name for p in rest.sp] == [p.name for p in penalty.sp if p.name not in frozen]
    assert [p.name for p in rest.l2] == [p.name for p in penalty.l2 if p.name not in frozen]


@LAWS
@given(st.integers(-2, 26), st.integers(1, 23))
def test_a_frozen_block_cannot_be_reinitialised(n, reinit_layers):
    reset = set(range(22 - (reinit_layers - 1), 22))
    if n < 0 or n > 22 or set(range(n)) & reset:
        with pytest.raises(SpecError, match=rf"got {n};"):
            check_frozen(n, n_blocks=22, reinit_layers=reinit_layers)
    else:
        check_frozen(n, n_blocks=22, reinit_layers=reinit_layers)


def test_a_refused_number_changes_nothing():
    model, layers = network()
    with pytest.raises(SpecError, match="a reinitialised block must learn"):
        freeze(layers, layers.n_blocks, reinit_layers=2)
    assert all(p.requires_grad for p in model.parameters())


def test_inception_v4_frozen_half_way_stores_nothing_below():
    torch.manual_seed(0)
    model = timm.create_model("inception_v4", num_classes=3)
    layers = layers_of(model)
    images = torch.randn(2, 3, 96, 96)

    def stored(n: int) -> int:
        frozen = freeze(layers, n)
        model.train()
        frozen.hold()
        own = {value.data_ptr() for value in model.state_dict().values()}
        sizes = {}

        def note(x):
            if x.data_ptr() not in own:
                sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            model(images)
        return sum(sizes.values())

    everything, half, whole = stored(0), stored(10), stored(22)
    assert half < 0.5 * everything
    assert whole < 0.01 * everything
