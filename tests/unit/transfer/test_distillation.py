"""Distillation against a literal float64 transcription, its laws, and the source classifier."""

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nbtl_search.errors import SpecError, WeightsError
from nbtl_search.transfer.distillation import (
    PooledFeatures,
    SourceHead,
    distillation,
    source_head,
)
from nbtl_search.transfer.source import frozen_copy

LAWS = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def logits(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    scale = 10 ** draw(st.floats(-2, 1.5))
    student, teacher = (
        scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student.requires_grad_(), teacher, draw(st.floats(0.5, 10))


def softmax(row: list[float], T: float) -> list[float]:
    top = max(row)
    raised = [math.exp((x - top) / T) for x in row]
    return [x / math.fsum(raised) for x in raised]


def log_softmax(row: list[float], T: float) -> list[float]:
    top = max(row)
    total = math.log(math.fsum(math.exp((x - top) / T) for x in row))
    return [(x - top) / T - total for x in row]


@LAWS
@given(logits())
def test_value_and_gradient_are_the_formula(drawn):
    student, teacher, T = drawn
    total, gradient = 0.0, torch.zeros_like(student)
    for i, (s, t) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
        p, q = softmax(t, T), softmax(s, T)
        log_p, log_q = log_softmax(t, T), log_softmax(s, T)
        total += sum(p[k] * (log_p[k] - log_q[k]) for k in range(len(p))) / len(student)
        gradient[i] = torch.tensor([(q[k] - p[k]) / T / len(student) for k in range(len(p))])
    value = distillation(student, teacher, temperature=T)
    assert value.item() == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert value.item() >= -1e-12
    (got,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(got, gradient.detach(), rtol=1e-9, atol=1e-7)
    squared = distillation(student, teacher, temperature=T, squared=True)
    assert squared.item() == pytest.approx(T * T * value.item(), rel=1e-12, abs=1e-15)


@LAWS
@given(logits(), st.floats(-50, 50))
def test_it_is_zero_at_the_teacher_and_does_not_see_a_shift(drawn, shift):
    _, teacher, T = drawn
    for moved in (0.0, shift):
        student = (teacher + moved).requires_grad_()
        value = distillation(student, teacher, temperature=T)
        assert value.item() == pytest.approx(0, abs=1e-12)
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.abs().max().item() == pytest.approx(0, abs=1e-12)


@LAWS
@given(logits())
def test_it_is_the_mean_over_the_batch(drawn):
    student, teacher, T = drawn
    rows = [
        distillation(student[i : i + 1], teacher[i : i + 1], temperature=T).item()
        for i in range(len(student))
    ]
    value = distillation(student, teacher, temperature=T).item()
    assert value == pytest.approx(sum(rows) / len(rows), rel=1e-9, abs=1e-12)


def test_the_usual_temperature_is_three_without_its_square():
    student, teacher = torch.tensor([[0.0, 3.0]]), torch.tensor([[3.0, 0.0]])
    p = 1 / (1 + math.exp(-1))
    assert distillation(student, teacher).item() == pytest.approx(2 * p - 1, rel=1e-6)


def test_no_gradient_reaches_the_teacher_and_bf16_is_widened():
    student = torch.randn(3, 1000).bfloat16().requires_grad_()
    teacher = torch.randn(3, 1000).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distillation(student, teacher)
    assert value.dtype == torch.float32
    wide = distillation(student.double(), teacher.double())
    assert value.item() == pytest.approx(wide.item(), rel=1e-4)
    value.backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_cannot_be_is_refused(temperature):
    with pytest.raises(SpecError, match="temperature > 0"):
        distillation(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)


class TestSourceHead:
    def test_one_pass_gives_the_logits_of_both_classifiers(self):
        torch.manual_seed(0)
        source: Any = timm.create_model("test_resnet", num_classes=11)
        teacher = frozen_copy(source)
        target: Any = timm.create_model("test_resnet", num_classes=3)
        backbone = {k: v for k, v in source.state_dict().items() if not k.startswith("fc.")}
        target.load_state_dict(backbone, strict=False)
        head = source_head(target, source.state_dict())
        images = torch.randn(2, 3, 64, 64)
        target.eval()
        with PooledFeatures(target) as pooled:
            logits = target(images)
            student = head(pooled.features)
        assert logits.shape == (2, 3)
        assert torch.equal(student, teacher(images))
        distillation(student, teacher(images) + torch.randn(2, 11)).backward()
        assert target.conv1[0].weight.grad.any()
        assert target.fc.weight.grad is None
        assert not target.fc._forward_pre_hooks

    def test_it_is_constant_and_in_no_model(self):
        source: Any = timm.create_model("test_resnet", num_classes=11)
        target: Any = timm.create_model("test_resnet", num_classes=3)
        keys = set(target.state_dict())
        head = source_head(target, source.state_dict())
        kept = head.weight.clone()
        with torch.no_grad():
            source.fc.weight.zero_()
        assert torch.equal(head.weight, kept)
        assert not head.weight.requires_grad
        assert set(target.state_dict()) == keys
        moved = head.to("meta")
        assert moved.weight.device.type == "meta"
        assert moved.bias is not None
        assert moved.bias.device.type == "meta"
        assert head.weight.device.type == "cpu"
        bare = SourceHead(weight=head.weight, bias=None).to("cpu")
        assert bare(torch.zeros(1, 96)).shape == (1, 11)

    def test_half_precision_weights_are_constants_in_float32(self):
        target: Any = timm.create_model("test_resnet", num_classes=3)
        half = {"fc.weight": torch.ones(11, 96).half(), "fc.bias": torch.ones(11).bfloat16()}
        head = source_head(target, half)
        assert torch.equal(head(torch.ones(1, 96)), torch.full((1, 11), 97.0))

    def test_several_classifiers_are_refused(self):
        class Twice(nn.Module):
            def get_classifier(self) -> tuple[nn.Module, nn.Module]:
                return nn.Linear(2, 2), nn.Linear(2, 2)

        with pytest.raises(SpecError, match="one classifier, got tuple"):
            PooledFeatures(Twice())

    def test_weights_without_a_classifier_are_refused(self):
        target: Any = timm.create_model("test_resnet", num_classes=3)
        with pytest.raises(WeightsError, match="got none"):
            source_head(target, {})
        with pytest.raises(WeightsError, match=r"shape \(11, 7\)"):
            source_head(target, {"fc.weight": torch.zeros(11, 7)})
        with pytest.raises(SpecError, match="one linear layer"):
            source_head(timm.create_model("test_resnet", num_classes=0), {})

    def test_features_before_any_pass_are_refused(self):
        with (
            PooledFeatures(timm.create_model("test_resnet")) as pooled,
            pytest.raises(SpecError, match="got none yet"),
        ):
            _ = pooled.features
