"""Loss and accuracies against a plain count."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from nbtl_search.network.device import Placement
from nbtl_search.training.evaluation import evaluate, score

CPU = Placement(device=torch.device("cpu"), bf16=False)


@pytest.mark.parametrize("n_classes", [3, 5, 12])
def test_a_score_counts_what_it_says(n_classes):
    generator = torch.Generator().manual_seed(n_classes)
    logits = torch.randn(40, n_classes, generator=generator)
    labels = torch.randint(n_classes, (40,), generator=generator)
    got = score(logits, labels)
    ranks = [(row > row[label]).sum().item() for row, label in zip(logits, labels, strict=True)]
    assert got.n_images == 40
    assert got.n_top1 == sum(rank < 1 for rank in ranks)
    assert got.n_top5 == sum(rank < 5 for rank in ranks)
    assert got.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert got.top1 == pytest.approx(100 * got.n_top1 / 40)


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 100])
def test_batches_and_pieces_add_up(micro_batch):
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 6))
    images = torch.randn(11, 3, 2, 2, generator=generator)
    labels = torch.randint(6, (11,), generator=generator)
    batches = [(images[:5], labels[:5]), (images[5:], labels[5:])]
    got = evaluate(model.train(), batches, placement=CPU, micro_batch=micro_batch)
    with torch.inference_mode():
        want = score(model.eval()(images), labels)
    assert (got.n_images, got.n_top1, got.n_top5) == (11, want.n_top1, want.n_top5)
    assert got.loss == pytest.approx(want.loss, rel=1e-5)
