"""The one contract of every method, alone and in every pair: on real photographs.

Three epochs train; a second run of the same seed that is stopped in its second epoch, saved and
resumed, is the same bit for bit; another seed is another run; the weights it keeps load into timm's
own model and give the same logits.
"""

import io
import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from nbtl_search.data.prepared import prepare
from nbtl_search.spec import Epoch, Recipe
from nbtl_search.training.final_run import WEIGHTS_FILE, keep
from nbtl_search.training.run import Run, Step, train
from nbtl_search.transfer.source_classifier import rebuilt
from tests.rounds import LONG

pytestmark = [pytest.mark.data, pytest.mark.slow]

MOBILENET, INCEPTION = "mobilenetv2_100", "inception_v4"
# Images of each of two kinds to train on: two updates in an epoch, and one of the larger network.
N_TRAIN, N_VAL, BATCH = {MOBILENET: 6, INCEPTION: 2}, 2, {MOBILENET: 6, INCEPTION: 4}
# Noise explodes in a deep network of random weights whose statistics are those of photographs.
AUGMENT = {MOBILENET: {}, INCEPTION: {"erasing": 0.0, "randaugment": ""}}
# With stochastic normalisation the maps of that network are far off, and so is the pull.
DAMPING = {MOBILENET: 1.0, INCEPTION: 1e-4}
# Below 107 px Inception-v4 ends in maps of one place, of which batch norm sees two values.
IMAGE_PX, RATE = {MOBILENET: 80, INCEPTION: 107}, {MOBILENET: 0.005, INCEPTION: 0.0005}

# Every method switched on, in each of its forms: what is set of dials, and of [methods].
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "l2sp": {"on": {"n_l2sp": 5, "alpha": 0.01}},
    "delta": {
        "plain": {"delta": "plain", "delta_alpha": 1e-6},
        "attention": {"delta": "attention", "delta_alpha": 1e-3},
    },
    "distill": {"on": {"distill": 2.0}},
    "dtnh": {"conflict": {"dtnh": "conflict"}, "always": {"dtnh": "always"}},
    "bss": {"on": {"bss": 0.001}},
    "stochnorm": {"on": {"stochnorm_p": 0.5}},
    "source_head": {"keep": {"source_head": "keep"}},
    "head_start": {"logistic": {"head_start": "logistic"}},
    "frozen": {"some": {"frozen_layers": 2}},
    "decay": {"on": {"decay_updates": 2, "decay_factor": 0.5}},
    "momentum": {"low": {"momentum": 0.3}},
    "layers": {"on": {"layer_decay": 0.8}},
    "adamw": {"on": {"optimiser": "adamw"}},
}
OF_TRAIN = {"optimiser"}
PULLS = {"l2sp", "delta", "distill"}  # DTNH needs one of them
OFF = "off"
Row = dict[str, str]

# Few rows in which every two forms of two methods are on together.
TOGETHER: list[Row] = [
    {
        "stochnorm": "on",
        "source_head": "keep",
        "frozen": "some",
        "decay": "on",
        "momentum": "low",
        "layers": "on",
        "adamw": "on",
    },
    {
        "delta": "plain",
        "distill": "on",
        "dtnh": "conflict",
        "bss": "on",
        "momentum": "low",
        "layers": "on",
        "adamw": "on",
        "head_start": "logistic",
    },
    {
        "l2sp": "on",
        "delta": "attention",
        "dtnh": "always",
        "bss": "on",
        "decay": "on",
        "head_start": "logistic",
        "layers": "on",
        "adamw": "on",
    },
    {"stochnorm": "on", "frozen": "some", "momentum": "low", "head_start": "logistic"},
    {"delta": "plain", "distill": "on", "dtnh": "always", "source_head": "keep", "frozen": "some"},
    {
        "l2sp": "on",
        "delta": "attention",
        "dtnh": "conflict",
        "source_head": "keep",
        "frozen": "some",
    },
    {"l2sp": "on", "delta": "plain", "distill": "on", "stochnorm": "on", "decay": "on"},
    {"delta": "attention", "dtnh": "always", "bss": "on", "stochnorm": "on", "momentum": "low"},
    {"delta": "attention", "distill": "on", "bss": "on", "source_head": "keep", "frozen": "some"},
    {"l2sp": "on", "dtnh": "conflict", "stochnorm": "on", "decay": "on", "momentum": "low"},
]


def possible(row: Row) -> bool:
    pulled = any(row[name] != OFF for name in PULLS)
    return (pulled or row["dtnh"] == OFF) and OFF in (row["source_head"], row["head_start"])


def pairs_of(row: Row) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    on = sorted((name, form) for name, form in row.items() if form != OFF)
    return set(itertools.combinations(on, 2))


def alone() -> list[Row]:
    rows = [dict.fromkeys(FORMS, OFF)]
    for name, forms in FORMS.items():
        for form in forms:
            row = dict.fromkeys(FORMS, OFF) | {name: form}
            rows.append(row if possible(row) else row | {"l2sp": "on"})
    return rows


ROWS = {
    "+".join(f"{n}={f}" for n, f in row.items() if f != OFF) or "plain": row
    for row in (*alone(), *(dict.fromkeys(FORMS, OFF) | row for row in TOGETHER))
}


def test_the_rows_cover_every_pair():
    together = set().union(*(pairs_of(row) for row in ROWS.values()))
    for (a, of_a), (b, of_b) in itertools.combinations(FORMS.items(), 2):
        if {a, b} == {"source_head", "head_start"}:  # a kept classifier is not fitted
            continue
        for pair in itertools.product(((a, f) for f in of_a), ((b, f) for f in of_b)):
            assert tuple(sorted(pair)) in together
    assert len(ROWS) < 40


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> dict[str, Path]:
    """A few photographs of each of two textures."""
    source = Path(os.environ["NBTL_REAL_DATA"]) / "dtd10" / "images"
    folders = {}
    for model, n_train in N_TRAIN.items():
        folders[model] = tmp_path_factory.mktemp("photographs")
        for kind in sorted(source.iterdir())[:2]:
            files = sorted(kind.iterdir())
            for split, chosen in (("train", files[:n_train]), ("val", files[-N_VAL:])):
                target = folders[model] / split / kind.name
                target.mkdir(parents=True)
                for file in chosen:
                    (target / file.name).symlink_to(file)
    return folders


def calibrate(model: torch.nn.Module, files: list[Path]) -> None:
    """Give batch norm statistics of photographs, as trained networks have: else all explodes."""
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((107, 107))) for file in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1


@pytest.fixture(scope="module")
def weights(tmp_path_factory, photographs) -> dict[str, Path]:
    """Real weights of MobileNetV2; of Inception-v4 there are none here, so random ones."""
    file = tmp_path_factory.mktemp("inception") / "inception_v4.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(INCEPTION, num_classes=20)
        calibrate(model, sorted(photographs[MOBILENET].rglob("*.jpg")))
    safetensors.torch.save_file(model.state_dict(), file)
    mobilenet = "weights/mobilenetv2_100_from_torchvision_int8.pth"
    return {MOBILENET: Path(os.environ["NBTL_REAL_DATA"]) / mobilenet, INCEPTION: file}


@pytest.fixture
def make_run(home, photographs, weights):
    def make(model: str, row: Row, *, seed: int = 0) -> Run:
        dials: dict[str, Any] = {"lr_high": RATE[model], "beta": 1e-3}
        for name, form in row.items():
            dials |= FORMS[name].get(form, {})
        if "delta_alpha" in dials:
            dials["delta_alpha"] *= DAMPING[model]
        n = BATCH[model]
        training = {name: dials.pop(name) for name in OF_TRAIN & dials.keys()}
        if "optimiser" in training:
            dials["lr_high"] /= 10
        recipe = Recipe.parse({
            "data": {"dataset": str(photographs[model]), "image_px": IMAGE_PX[model]},
            "model": {"name": model, "weights": str(weights[model])},
            "train": {"epochs": 3, "batch_size": n, "micro_batch": n // 2, "warmup_epochs": 0,
                      "device": "cpu", "precision": "fp32", "n_threads": 1, "seed": seed,
                      **training},
            "dials": dials,
            "augment": AUGMENT[model],
            "methods": {"delta_taps": 1, "delta_batches": 1},
        })  # fmt: skip
        return Run(recipe, prepared=prepare(recipe.data, home=home), home=home)

    return make


def through_a_file(state: Any) -> Any:
    content = io.BytesIO()
    torch.save(state, content)
    content.seek(0)
    return torch.load(content, weights_only=True)


def tensors(run: Run) -> dict[str, torch.Tensor]:
    found = dict(run.network.model.state_dict())
    for index, values in run.optimiser.state_dict()["state"].items():
        found |= {f"{name}.{index}": value for name, value in values.items()}
    return found


def same(a: Run, b: Run) -> bool:
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    epochs = zip(a.history, b.history, strict=True)
    return all(one.same_result(other) for one, other in epochs) and all(
        torch.equal(value, right[name]) for name, value in left.items()
    )


def rebuilt_by_timm(model: str, file: Path, row: Row) -> torch.nn.Module:
    state = safetensors.torch.load_file(file)
    if row["source_head"] == "keep":
        return rebuilt(model, state).eval()
    plain = timm.create_model(model, num_classes=2)
    plain.load_state_dict(state)
    return plain.eval()


# Every pair is proved on the small network. The large one has each form once, in three rows that
# are found to hold them all; `make chaos` proves every row on it again.
ONCE = [dict.fromkeys(FORMS, OFF), *(dict.fromkeys(FORMS, OFF) | row for row in TOGETHER[:3])]
CASES = [(MOBILENET, name) for name in ROWS] + [
    (INCEPTION, name) for name, row in ROWS.items() if LONG or row in ONCE
]


def test_the_large_network_has_every_form():
    for name, forms in FORMS.items():
        assert {row[name] for row in ONCE} == {OFF, *forms}


@pytest.mark.parametrize(("model", "row"), CASES)
def test_every_method_keeps_the_contract(make_run, model, row, tmp_path):
    row = ROWS[row]
    whole = make_run(model, row)
    started = {n: p.detach().clone() for n, p in whole.network.model.named_parameters()}
    saved, first_loss = None, None
    for event in train(whole):
        first_loss = first_loss or whole.progress.loss_sum
        if isinstance(event, Step) and (event.epoch, event.update) == (2, 1):
            saved = through_a_file(whole.state_dict())
        if isinstance(event, Epoch):
            assert math.isfinite(event.train_loss)
    assert len(whole.history) == 3
    moved = {
        name
        for name, parameter in whole.network.model.named_parameters()
        if not torch.equal(parameter, started[name])
    }
    frozen = {name for block in whole.network.frozen.blocks for name, _ in block.parameters}
    assert bool(frozen) == (row["frozen"] != OFF)
    assert not moved & frozen
    assert len(moved) > 0.9 * (len(started) - len(frozen))

    resumed = make_run(model, row)
    resumed.load_state_dict(saved)
    assert resumed.position == (1, 1)
    list(train(resumed))
    assert same(whole, resumed)

    other = make_run(model, row, seed=1)
    next(train(other))
    assert other.progress.loss_sum != first_loss

    keep(whole, tmp_path / "kept", None)
    px = IMAGE_PX[model]
    images = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    alone = rebuilt_by_timm(model, tmp_path / "kept" / WEIGHTS_FILE, row)
    with torch.no_grad():
        logits, expected = alone(images), whole.network.model.eval()(images)
    # Three epochs after random weights, logits may be large.
    scale = expected.abs().max()
    torch.testing.assert_close(logits / scale, expected / scale, rtol=0, atol=1e-4)
