"""L2 and L2-SP: value and gradient against float64 autograd, and the laws they keep."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtl_search.spec import Dials
from nbtl_search.transfer.layers import layers_of
from nbtl_search.transfer.penalties import L2SP, l2sp

MODEL = timm.create_model("test_efficientnet", num_classes=4).double()
LAYERS = layers_of(MODEL)


def anchors_beside(*, distance: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return anchors of every block's parameters, so far away."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: p.detach() + distance * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for block in LAYERS.blocks
        for name, p in block.parameters
    }


def formula(penalty: L2SP) -> torch.Tensor:
    """R(w) with autograd's graph."""
    total = torch.zeros((), dtype=torch.float64)
    for pull in penalty.sp:
        assert pull.anchor is not None
        total = total + pull.rate / 2 * ((pull.parameter - pull.anchor) ** 2).sum()
    for pull in penalty.l2:
        total = total + pull.rate / 2 * (pull.parameter**2).sum()
    return total


@settings(max_examples=30, deadline=None)
@given(
    reinit_layers=st.integers(1, LAYERS.n_blocks + 1),
    n_l2sp=st.integers(0, LAYERS.n_blocks + 3),
    alpha=st.floats(1e-5, 0.1),
    beta=st.floats(1e-5, 0.1),
    scope=st.sampled_from(["no_norm", "weights", "all"]),
    compat=st.sampled_from(["paper", "authors"]),
    task=st.booleans(),
)
def test_value_and_gradient_are_those_of_the_formula(
    reinit_layers, n_l2sp, alpha, beta, scope, compat, task
):
    dials = Dials(reinit_layers=reinit_layers, n_l2sp=n_l2sp, alpha=alpha, beta=beta)
    penalty = l2sp(LAYERS, dials, anchors=anchors_beside(distance=0.3), scope=scope, compat=compat)
    value = formula(penalty)
    assert penalty.value().item() == pytest.approx(value.item(), rel=1e-12)
    MODEL.zero_grad()
    if value.requires_grad:
        value.backward()
    expected = {n: p.grad.clone() for n, p in MODEL.named_parameters() if p.grad is not None}
    MODEL.zero_grad()
    start = 0.0
    if task:  # the penalty is added to what the task's backward has left
        start = 1.0
        for p in MODEL.parameters():
            p.grad = torch.ones_like(p)
    penalty.add_gradient_()
    for name, p in MODEL.named_parameters():
        want = expected.get(name, torch.zeros_like(p)) + start
        got = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15, msg=name)


def test_nothing_pulls_at_the_anchor():
    dials = Dials(n_l2sp=99, alpha=0.1, beta=0.0)
    penalty = l2sp(LAYERS, dials, anchors=anchors_beside(distance=0.0), scope="all")
    MODEL.zero_grad()
    penalty.add_gradient_()
    assert penalty.value().item() == 0
    assert all(not p.grad.any() for p in MODEL.parameters() if p.grad is not None)


def test_zero_rates_pull_nothing_at_all():
    penalty = l2sp(LAYERS, Dials(n_l2sp=2), anchors=anchors_beside(distance=1.0))
    assert penalty == L2SP(sp=(), l2=())
    assert penalty.value().item() == 0


def test_without_anchors_everything_is_pulled_to_zero():
    penalty = l2sp(LAYERS, Dials(n_l2sp=99, alpha=0.1, beta=0.2), anchors={})
    assert penalty.sp == ()
    assert {pull.rate for pull in penalty.l2} == {0.2}


@pytest.mark.parametrize("scope", ["no_norm", "weights", "all"])
def test_scopes_cover_what_they_say(scope):
    penalty = l2sp(LAYERS, Dials(beta=0.1), anchors={}, scope=scope)
    covered = {pull.name for pull in penalty.l2}
    every = dict(MODEL.named_parameters())
    # In this network all that has one dimension and is no bias of the classifier is batch norm.
    kernels = {name for name, p in every.items() if p.dim() > 1}
    biases = {"classifier.bias"}
    assert (
        covered
        == {
            "weights": kernels,
            "no_norm": kernels | biases | {n for n in every if ".se." in n},
            "all": set(every),
        }[scope]
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_l2_is_weight_decay_for_sgd(momentum, nesterov):
    if nesterov and not momentum:
        return  # torch has no such optimiser
    rate, ends = 0.05, []
    for decay, beta in ((rate, 0.0), (0.0, rate)):
        model = copy.deepcopy(MODEL).float()
        penalty = l2sp(layers_of(model), Dials(beta=beta), anchors={}, scope="all")
        sgd = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=decay
        )
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        for _ in range(5):
            sgd.zero_grad()
            model(images).square().mean().backward()
            penalty.add_gradient_()
            sgd.step()
        ends.append([p.detach() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
