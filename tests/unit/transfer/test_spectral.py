"""Batch spectral shrinkage: the literal singular values, their gradient, and the law of scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtl_search.errors import SpecError
from nbtl_search.transfer.spectral import spectral_shrinkage

shapes = st.tuples(st.integers(2, 9), st.integers(1, 9))
seeds = st.integers(0, 2**32)


def drawn(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def literal(F, eta, k):
    """The formula as printed: singular values in descending order, the last k squared."""
    return eta * torch.linalg.svdvals(F)[-k:].square().sum()


@settings(max_examples=60, derandomize=True)
@given(shapes, seeds, st.floats(1e-4, 10), st.data())
def test_value_and_gradient_are_those_of_the_singular_values(shape, seed, eta, data):
    k = data.draw(st.integers(1, min(shape)))
    F = drawn(shape, seed).requires_grad_()
    value = spectral_shrinkage(F, eta=eta, k=k)
    expected = literal(F.detach(), eta, k)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-12)
    U, S, V = torch.linalg.svd(F.detach(), full_matrices=False)
    gradient = eta * sum(2 * S[-i] * torch.outer(U[:, -i], V[-i]) for i in range(1, k + 1))
    value.backward()
    torch.testing.assert_close(F.grad, gradient, rtol=1e-6, atol=1e-8 * eta)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_gradient_is_that_of_autograd_through_the_singular_values(shape):
    F = drawn(shape, 5).requires_grad_()
    (got,) = torch.autograd.grad(spectral_shrinkage(F, eta=0.3, k=2), F)
    (expected,) = torch.autograd.grad(literal(F, 0.3, 2), F)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, derandomize=True)
@given(shapes, seeds, st.floats(1e-2, 1e2))
def test_it_scales_with_the_square_of_the_features(shape, seed, s):
    F = drawn(shape, seed)
    scaled = spectral_shrinkage(s * F)
    torch.testing.assert_close(scaled, s**2 * spectral_shrinkage(F), rtol=1e-8, atol=1e-13)


@settings(max_examples=30, derandomize=True)
@given(shapes, seeds)
def test_order_of_images_and_rotation_of_features_do_not_matter(shape, seed):
    F = drawn(shape, seed)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(drawn((shape[1], shape[1]), seed + 1)).Q
    value = spectral_shrinkage(F)
    torch.testing.assert_close(spectral_shrinkage(F[order]), value, rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(spectral_shrinkage(F @ rotation), value, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize(
    ("F", "k"),
    [
        (torch.eye(4, 6), 2),
        (torch.zeros(4, 6), 1),
        (torch.ones(4, 6), 2),
        (torch.ones(6, 4), 3),
    ],
)
def test_repeated_singular_values_have_a_finite_gradient(F, k):
    F = F.double().requires_grad_()
    value = spectral_shrinkage(F, eta=1.0, k=k)
    value.backward()
    torch.testing.assert_close(value, literal(F.detach(), 1, k))
    assert F.grad is not None
    assert F.grad.isfinite().all()
    # Of any choice inside a repeated value: <gradient, F> = 2 value, as of every square.
    torch.testing.assert_close((F.grad * F).sum(), 2 * value, rtol=1e-9, atol=1e-12)


def test_a_whole_repeated_value_has_the_one_gradient():
    left, right = (torch.linalg.qr(drawn((5, 5), seed)).Q for seed in (1, 2))
    S = torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    F = (left * S @ right.T).requires_grad_()
    spectral_shrinkage(F, eta=1.0, k=3).backward()
    expected = 2 * left[:, 2:] @ right[:, 2:].T
    torch.testing.assert_close(F.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e25])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_what_is_not_finite_is_not_penalised(bad, shape):
    F = drawn(shape, 0, torch.float32)
    F[1, 2] = bad
    value = spectral_shrinkage(F.requires_grad_())
    assert value.item() == 0
    assert not value.requires_grad


def test_a_solver_that_fails_penalises_nothing(monkeypatch):
    def fail(_gram):
        raise torch.linalg.LinAlgError  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    value = spectral_shrinkage(drawn((4, 6), 0).requires_grad_())
    assert value.item() == 0
    assert not value.requires_grad


def test_under_autocast_it_is_float32():
    F = drawn((8, 32), 3, torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = spectral_shrinkage(F, eta=1.0, k=2)
    assert value.dtype == torch.float32
    value.backward()
    assert F.grad is not None
    assert F.grad.dtype == torch.bfloat16
    exact = literal(F.detach().double(), 1, 2)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_descent_step_shrinks_the_smallest_value_and_no_other():
    F = drawn((6, 16), 4).requires_grad_()
    spectral_shrinkage(F, eta=1.0).backward()
    assert F.grad is not None
    before, after = torch.linalg.svdvals(F.detach()), torch.linalg.svdvals(F - 0.1 * F.grad)
    torch.testing.assert_close(after[:-1], before[:-1])
    assert after[-1].item() == pytest.approx(0.8 * before[-1].item())


@pytest.mark.parametrize(
    ("shape", "k", "text"),
    [((1, 8), 1, "2 images"), ((0, 8), 1, "2 images"), ((4, 8), 5, "<= 4"), ((4, 8), 0, "1 <= k")],
)
def test_batches_without_a_spectrum_are_refused(shape, k, text):
    with pytest.raises(SpecError, match=text):
        spectral_shrinkage(torch.ones(shape), k=k)
