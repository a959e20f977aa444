"""Folders as ended final runs leave them, and the verdict that speaks of them."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import safetensors.torch
import timm
import torch

from nbtl_search.spec import Dials, Recipe
from nbtl_search.spec.verdict import (
    Contender,
    Entry,
    Estimate,
    FinalRun,
    FinalWeights,
    Interval,
    Summary,
    TestScore,
    TestSetReading,
    Verdict,
)
from nbtl_search.transfer.source_classifier import append_layers

MODEL = "test_resnet"
# Names that break Markdown, HTML, terminals and YAML where they are not escaped.
CLASSES = ('ro"t | *x*', "<script>grün</script>", "[red]猫 🐈 #1")
HOST = "node-7"
SEEDS = (104, 101, 102, 103)


N_SOURCE = 11


def make_run(folder, *, seed, model=MODEL, image_px=32, hidden=None, dials=None):
    """Write one run's folder; return the digest of its weights.

    With `hidden` the run has kept its source classifier, below new layers of these units.
    """
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        n_classes = len(CLASSES) if hidden is None else N_SOURCE
        network = timm.create_model(model, num_classes=n_classes)
        if hidden is not None:
            generator = torch.Generator().manual_seed(seed)
            append_layers(network, n_classes=len(CLASSES), hidden=hidden, generator=generator)
        for name, value in network.state_dict().items():
            if "running_mean" in name:
                value.add_(0.1 * torch.randn_like(value))
    weights = folder / "model.safetensors"
    safetensors.torch.save_file(network.state_dict(), weights, metadata={"format": "pt"})
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    recipe = Recipe.parse(
        {
            "data": {"dataset": "/home/someone/secret-place/pets", "image_px": image_px},
            "model": {"name": model, "weights": "/home/someone/source.safetensors"},
            "train": {"seed": seed, "epochs": 3},
            "dials": {"n_low": 2, "lr_low_ratio": 0.3, "n_l2sp": 3}
            | ({"reinit_layers": 2} if hidden is None else {"source_head": "keep"})
            | (dials or {}),
            "methods": {"source_hidden": hidden or ()},
        }
    )
    about = {
        "model": model,
        "classes": list(CLASSES),
        "image_format": {
            "image_px": image_px,
            "crop_pct": 0.9,
            "interpolation": "bilinear",
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
        },
        "recipe": recipe.plain(),
        "weights_digest": digest,
        "source_weights_digest": "ab" * 32,
        "versions": {"torch": "2", "timm": "1", "nbtl_search": "0"},
        "device": "cpu",
        "precision": "fp32",
    }
    (folder / "about.json").write_text(json.dumps(about), "utf-8")
    return digest


def make_verdict(root: Path, **run_settings) -> Verdict:
    """Write the folders of a test stage below `root` and return a verdict of them.

    The winner is trial 7 and the default trial 0. Its highest test accuracy has seed 102.
    """
    runs: list[FinalRun] = []
    for candidate in (0, 7):
        for position, seed in enumerate(SEEDS):
            folder = root / f"{candidate}-{seed}"
            digest = make_run(folder, seed=seed + candidate, **run_settings)
            top1 = 90.0 if (candidate, seed) == (7, 102) else 70.0 + position + candidate
            runs.append(
                FinalRun(
                    number=len(runs), stage="test", candidate=candidate, seed=seed,
                    state="complete", n_epochs=3, seconds=1.0, n_attempts=1, val_top1=None,
                    test=TestScore(
                        n_images=50, top1=top1, top5=100.0, ten_crop_top1=top1 + 1,
                        ten_crop_top5=100.0,
                    ),
                    weights=FinalWeights(host=HOST, folder=str(folder), digest=digest),
                )
            )  # fmt: skip
    gain = Interval(n=4, mean=9.25, low=1.5, high=17.0)
    default, winner = (_entry(trial, name) for trial, name in ((0, "default"), (7, "trial 7")))
    return Verdict(
        round=1, stage="done", study="pets@test-1", n_confirm_seeds=4, n_test_seeds=4,
        contenders=tuple(_contender(entry) for entry in (default, winner)),
        winner=7, entries=(default, winner), gain=gain, ten_crop_gain=gain, ensemble_gain=3.0,
        runs=tuple(runs),
        readings=(
            TestSetReading(round=1, opened_at=datetime(2026, 1, 2, tzinfo=UTC), reason="first"),
        ),
    )  # fmt: skip


def alone(verdict: Verdict) -> Verdict:
    """Return what it would be had the default won."""
    return verdict.replace(winner=0, entries=verdict.entries[:1], gain=None, ten_crop_gain=None,
        ensemble_gain=None,
    )  # fmt: skip


def _entry(trial: int, name: str) -> Entry:
    return Entry(
        trial=trial, name=name, dials=Dials(), single=Summary(n=4, mean=71.5 + trial, std=1.29),
        ten_crop=Summary(n=4, mean=72.5 + trial, std=1.3), ensemble_top1=75.0 + trial,
    )  # fmt: skip


def _contender(entry: Entry) -> Contender:
    return Contender(
        trial=entry.trial, name=entry.name, dials=entry.dials, search_top1=70.0,
        confirmed=entry.single, value=Estimate(n=5, mean=61.0, low=60.0, high=62.0), gain=None,
        is_tied_with_winner=True, is_winner=entry.trial == 7,
    )  # fmt: skip
