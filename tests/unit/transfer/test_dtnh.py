"""DTNH: a literal float64 transcription, the law that it never hurts, and what joins a group."""

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtl_search.spec import Dials
from nbtl_search.transfer.dtnh import Gathered, dtnh, project
from nbtl_search.transfer.layers import layers_of
from nbtl_search.transfer.penalties import L2SP, l2sp

MODEL = timm.create_model("test_efficientnet", num_classes=4).double()
LAYERS = layers_of(MODEL)
MODES = ["conflict", "always"]
GRANULARITIES = ["tensor", "block", "global"]


@st.composite
def grouped_gradients(draw):
    """Draw two lists of tensors, some of them zero or tiny, and how they are grouped."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scales = st.sampled_from([0.0, 1e-12, 1.0, 1e6])
    shapes = [draw(st.sampled_from([(), (3,), (2, 3, 1, 1)])) for _ in range(sum(sizes))]
    g, r = (
        [
            draw(scales) * torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in shapes
        ]
        for _ in range(2)
    )
    return g, r, sizes


def literal(g, r, mode):
    """One group, as the formula stands: flat vectors in float64."""
    flat_g, flat_r = (torch.cat([t.flatten() for t in tensors]) for tensors in (g, r))
    inner, square = flat_g @ flat_r, flat_g @ flat_g
    if square == 0 or (mode == "conflict" and inner >= 0):
        return flat_g + flat_r
    return flat_g + flat_r - inner / square * flat_g


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def split(tensors, sizes):
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [tensors[end - size : end] for end, size in zip(ends, sizes, strict=True)]


@settings(max_examples=100, derandomize=True)
@given(grouped_gradients(), st.sampled_from(MODES))
def test_every_group_is_the_formula_and_never_hurts(drawn, mode):
    g, r, sizes = drawn
    kept = [t.clone() for t in (*g, *r)]
    added = project(g, r, sizes=sizes, mode=mode)
    assert all(torch.equal(a, b) for a, b in zip((*g, *r), kept, strict=True))
    groups = zip(*(split(tensors, sizes) for tensors in (g, r, added)), strict=True)
    for g_group, r_group, added_group in groups:
        own, new = flat(g_group), flat(g_group) + flat(added_group)
        scale = 1e-12 * (own.norm() + flat(r_group).norm())
        expected = literal(g_group, r_group, mode)
        assert (new - expected).norm() <= scale
        assert new @ own >= own @ own - scale * own.norm()


@settings(max_examples=50, derandomize=True)
@given(grouped_gradients())
def test_what_is_aligned_stays_as_it_is(drawn):
    g, r, sizes = drawn
    aligned = [torch.where(a * b < 0, -b, b) for a, b in zip(g, r, strict=True)]
    added = project(g, aligned, sizes=sizes, mode="conflict")
    assert all(torch.equal(a, b) for a, b in zip(added, aligned, strict=True))


@settings(max_examples=50, derandomize=True)
@given(grouped_gradients(), st.sampled_from(MODES))
def test_only_the_part_along_g_is_taken(drawn, mode):
    g, r, sizes = drawn
    added = project(g, r, sizes=sizes, mode=mode)
    groups = zip(*(split(tensors, sizes) for tensors in (g, r, added)), strict=True)
    for own, before, after in ((flat(a), flat(b), flat(c)) for a, b, c in groups):
        taken = before - after
        along = (taken @ own) / max(own @ own, torch.finfo(torch.float64).tiny) * own
        assert (taken - along).norm() <= 1e-10 * before.norm()
        if mode == "always" and own.norm() > 0:
            assert abs(after @ own) <= 1e-12 * before.norm() * own.norm()


@pytest.mark.parametrize("mode", MODES)
def test_where_one_of_the_two_vanishes_the_other_is_left(mode):
    r = [torch.randn(3), torch.zeros(3)]
    added = project([torch.zeros(3), torch.randn(3)], r, sizes=[1, 1], mode=mode)
    assert all(torch.equal(a, b) for a, b in zip(added, r, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-15])
def test_a_tiny_gradient_gives_nothing_large(mode, size):
    r = -torch.ones(4)
    (added,) = project([torch.full((4,), size)], [r], sizes=[1], mode=mode)
    assert added.norm() <= r.norm()


def test_inner_products_of_half_precision_are_in_float32():
    g, r = torch.full((300,), 300.0, dtype=torch.float16), torch.full((300,), -1.0).half()
    (added,) = project([g], [r], sizes=[1])
    assert added.dtype == torch.float16
    torch.testing.assert_close(added, torch.zeros_like(r), rtol=0, atol=2e-3)


def test_nothing_is_projected_of_nothing():
    assert project([], [], sizes=[]) == []


def anchors_beside(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: p.detach() + torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for block in LAYERS.blocks
        for name, p in block.parameters
    }


def task_gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    for p in MODEL.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return {n: p.grad.clone() for n, p in MODEL.named_parameters() if p.grad is not None}


def names_by_group(granularity):
    blocks = [[name for name, _ in block.parameters] for block in LAYERS.blocks]
    return {
        "tensor": [[name] for block in blocks for name in block],
        "block": blocks,
        "global": [[name for block in blocks for name in block]],
    }[granularity]


@settings(max_examples=30, derandomize=True)
@given(
    reinit_layers=st.integers(1, LAYERS.n_blocks + 1),
    n_l2sp=st.integers(0, LAYERS.n_blocks),
    alpha=st.sampled_from([0.0, 0.01, 3.0]),
    beta=st.sampled_from([0.0, 0.1]),
    mode=st.sampled_from(MODES),
    granularity=st.sampled_from(GRANULARITIES),
    other=st.booleans(),
    seed=st.integers(0, 99),
)
def test_over_a_network_it_is_the_formula_in_every_group(
    reinit_layers, n_l2sp, alpha, beta, mode, granularity, other, seed
):
    anchors = anchors_beside(seed)
    dials = Dials(reinit_layers=reinit_layers, n_l2sp=n_l2sp, alpha=alpha, beta=beta)
    penalty = l2sp(LAYERS, dials, anchors=anchors)
    g = task_gradients(seed)
    r = {pull.name: alpha * (pull.parameter.detach() - anchors[pull.name]) for pull in penalty.sp}
    gathered = None
    if other:
        names = [name for block in LAYERS.blocks[:2] for name, _ in block.parameters]
        gathered = {name: torch.randn_like(g[name]) for name in names}
        r |= {name: r.get(name, 0) + gathered[name] for name in names}
    dtnh(LAYERS, penalty, mode=mode, granularity=granularity).add_gradient_(gathered)
    expected = dict(g)
    for names in names_by_group(granularity):
        own = [name for name in names if name in r]
        if own:
            new = literal([g[name] for name in own], [r[name] for name in own], mode)
            parts = new.split([g[name].numel() for name in own])
            expected |= {n: part.view_as(g[n]) for n, part in zip(own, parts, strict=True)}
    for pull in penalty.l2:
        expected[pull.name] = expected[pull.name] + beta * pull.parameter.detach()
    for name, p in MODEL.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_classifier_reinitialised_and_unpenalised_keep_their_gradient(granularity):
    dials = Dials(reinit_layers=2, n_l2sp=99, alpha=5.0)
    penalty = l2sp(LAYERS, dials, anchors=anchors_beside(1))
    g = task_gradients(1)
    dtnh(LAYERS, penalty, granularity=granularity).add_gradient_()
    pulled = {pull.name for pull in penalty.sp}
    changed = {n for n, p in MODEL.named_parameters() if p.grad is None or not p.grad.equal(g[n])}
    assert changed == pulled
    assert not pulled & {
        name for name, _ in (*LAYERS.head.parameters, *LAYERS.blocks[-1].parameters)
    }


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_without_a_task_gradient_it_is_the_penalty_itself(granularity):
    dials = Dials(n_l2sp=2, alpha=0.5, beta=0.1)
    penalty = l2sp(LAYERS, dials, anchors=anchors_beside(2))
    MODEL.zero_grad()
    penalty.add_gradient_()
    expected = {n: p.grad.clone() for n, p in MODEL.named_parameters() if p.grad is not None}
    MODEL.zero_grad()
    dtnh(LAYERS, penalty, granularity=granularity).add_gradient_()
    assert {n for n, p in MODEL.named_parameters() if p.grad is not None} == expected.keys()
    for name, p in MODEL.named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_at_the_anchor_and_without_regularisers_nothing_changes(mode):
    at_anchor = {n: p.detach().clone() for n, p in MODEL.named_parameters()}
    for penalty in (
        l2sp(LAYERS, Dials(n_l2sp=99, alpha=1.0), anchors=at_anchor),
        L2SP(sp=(), l2=()),
    ):
        g = task_gradients(3)
        dtnh(LAYERS, penalty, mode=mode).add_gradient_()
        assert all(torch.equal(p.grad, g[n]) for n, p in MODEL.named_parameters())  # type: ignore[arg-type]


def test_the_authors_two_rates_are_in_the_projection():
    penalty = l2sp(LAYERS, Dials(n_l2sp=2, n_low=2), anchors=anchors_beside(4), compat="authors")
    assert len({pull.rate for pull in penalty.sp}) == 2
    g = task_gradients(4)
    dtnh(LAYERS, penalty, mode="always").add_gradient_()
    for pull in penalty.sp:
        assert pull.anchor is not None
        r = pull.rate * (pull.parameter.detach() - pull.anchor)
        expected = literal([g[pull.name]], [r], "always").view_as(r)
        torch.testing.assert_close(pull.parameter.grad, expected, rtol=1e-9, atol=1e-12)


def test_a_second_loss_is_gathered_over_pieces_beside_the_task():
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    model: Any = timm.create_model("test_efficientnet", num_classes=4).double().eval()
    backbone = tuple(pair for block in layers_of(model).blocks for pair in block.parameters)
    gathered = Gathered(backbone)
    for attempt in range(2):  # the first is given up, as after running out of memory
        gathered.clear()
        model.zero_grad()
        for part in images.split([4, 2])[: 1 + attempt]:
            share = len(part) / len(images)
            features = model.forward_features(part)
            gathered.backward(features.square().sum(dim=(1, 2, 3)).mean() * share)
            (model.forward_head(features).square().sum(dim=1).mean() * share).backward()
    features = model.forward_features(images)
    other = features.square().sum(dim=(1, 2, 3)).mean()
    task = model.forward_head(features).square().sum(dim=1).mean()
    parameters = [p for _, p in backbone]
    expected = torch.autograd.grad(other, parameters, retain_graph=True, allow_unused=True)
    for (name, _), gradient in zip(backbone, expected, strict=True):
        torch.testing.assert_close(gathered.gradients.get(name), gradient, rtol=1e-8, atol=1e-10)
    every = list(model.parameters())
    for p, gradient in zip(every, torch.autograd.grad(task, every), strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-10)


def test_frozen_and_unreached_parameters_gather_nothing():
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    gathered = Gathered((("a", a), ("b", b), ("frozen", frozen)))
    gathered.backward((a * frozen).sum(), retain_graph=False)
    assert gathered.gradients.keys() == {"a"}
    assert a.grad is None
