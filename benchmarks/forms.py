"""Train many forms of fine-tuning on folders of photographs, and record every curve.

    python benchmarks/forms.py --data FOLDERS --weights FILE --home HOME -o forms.jsonl

A form is a point of the space `paper`, its counts of blocks written as parts of the depth: 32 that
fill the space (a scrambled Sobol sequence) and those that were known before. All folders of a form
come before the next form, so that any beginning of the recording is balanced. What is recorded is
not trained again; two processes share the work with `--part 1/2` and `--part 2/2`.
"""

import argparse
from typing import Any

import recordings
import short_runs
import timm

from nbtl_search import space
from nbtl_search.network.allocator import keep_freed_memory
from nbtl_search.spec import Dials, KnownRecipe, Recipe, SearchSettings
from nbtl_search.transfer.layers import layers_of

N_BLOCKS = 18  # of MobileNetV2
SOBOL_SEED = 14
N_POINTS = 6  # of a curve
BATCH = 32

# Folder below --data, share for validation, epochs for about 100 updates of 32 images. Where a
# folder brings no split, nothing is set aside as test images.
FOLDERS: dict[str, tuple[str, float, int]] = {
    "dtd10": ("dtd10/images", 0.5, 16),
    "flowers": ("flowers", 0.5, 32),
    "caltech101_25": ("caltech101_25/101_ObjectCategories", 0.4, 6),
    "clothing10": ("clothing10", 0.5, 6),
    "sign_digits": ("sign_digits", 0.4, 6),
    "blood_cells": ("blood_cells", 0.4, 16),
}

HALF = {"n_low": "9/18"}
PULLED = {"n_l2sp": "11/18", "alpha": 1e-3, "beta": 1e-3}
LIGHT = {"beta": 5e-4}
FITTED = {"head_start": "logistic"}
KNOWN: dict[str, dict[str, Any]] = {
    "one rate, 0.0025": {"lr_high": 0.0025, **LIGHT},
    "one rate, 0.005": {"lr_high": 0.005, **LIGHT},
    "one rate, 0.01": {"lr_high": 0.01, **LIGHT},
    "one rate, 0.02": {"lr_high": 0.02, **LIGHT},
    "two rates, 0.01": {"lr_high": 0.01, **HALF, "lr_low_ratio": 0.1, **LIGHT},
    "fitted, one rate, 0.0004": {**FITTED, "lr_high": 0.0004, **LIGHT},
    "fitted, one rate, 0.001": {**FITTED, "lr_high": 0.001, **LIGHT},
    "fitted, one rate, 0.0025": {**FITTED, "lr_high": 0.0025, **LIGHT},
    "fitted, one rate, 0.005": {**FITTED, "lr_high": 0.005, **LIGHT},
    "fitted, two rates, 0.005": {
        **FITTED,
        "lr_high": 0.005,
        **HALF,
        "lr_low_ratio": 0.1,
        **LIGHT,
    },
    "fitted, two rates, 0.01": {**FITTED, "lr_high": 0.01, **HALF, "lr_low_ratio": 0.1, **LIGHT},
    "fitted, two rates, 0.02": {**FITTED, "lr_high": 0.02, **HALF, "lr_low_ratio": 0.1, **LIGHT},
    "fitted, pulled, 0.01": {
        **FITTED,
        "lr_high": 0.01,
        **HALF,
        "lr_low_ratio": 0.1,
        **PULLED,
    },
    "pulled, two new, 0.01": {
        "reinit_layers": 2,
        "lr_high": 0.01,
        **HALF,
        "lr_low_ratio": 0.1,
        **PULLED,
    },
    "pulled, 0.01": {"lr_high": 0.01, **HALF, "lr_low_ratio": 0.1, **PULLED},
    "suited": {
        "reinit_layers": 2,
        "lr_high": 0.002,
        "n_l2sp": "14/22",
        "alpha": 1e-3,
        "beta": 1e-3,
    },
    "unsuited": {"lr_high": 0.01, "n_low": "8/22", "lr_low_ratio": 0.4, **LIGHT},
    "fast head, two rates, 0.004": {
        "lr_high": 0.004,
        "lr_head_ratio": 10.0,
        **HALF,
        "lr_low_ratio": 0.1,
        **LIGHT,
    },
    "fast head, two rates, 0.01": {
        "lr_high": 0.01,
        "lr_head_ratio": 3.0,
        **HALF,
        "lr_low_ratio": 0.3,
        **LIGHT,
    },
    "two rates, 0.02": {"lr_high": 0.02, **HALF, "lr_low_ratio": 0.1, **LIGHT},
    "two rates, 0.04": {"lr_high": 0.04, **HALF, "lr_low_ratio": 0.1, **LIGHT},
    "pulled, two new, 0.02": {
        "reinit_layers": 2,
        "lr_high": 0.02,
        **HALF,
        "lr_low_ratio": 0.1,
        **PULLED,
    },
    "pulled, two new, 0.005": {
        "reinit_layers": 2,
        "lr_high": 0.005,
        **HALF,
        "lr_low_ratio": 0.1,
        **PULLED,
    },
    "pulled, 0.02": {"lr_high": 0.02, **HALF, "lr_low_ratio": 0.1, **PULLED},
    "fast head, 0.002": {"lr_high": 0.002, "lr_head_ratio": 10.0, **LIGHT},
    "pulled everywhere, 0.01": {
        "lr_high": 0.01,
        "n_l2sp": "18/18",
        "alpha": 1e-2,
        "beta": 1e-2,
    },
    "three new, 0.02": {
        "reinit_layers": 3,
        "lr_high": 0.02,
        "n_low": "12/18",
        "lr_low_ratio": 0.1,
        **LIGHT,
    },
}
# Where Sobol's points lie: of the whole space, what could be of use in so few updates.
ROWS = {
    "head_start": {"options": ["random", "logistic"]},
    "lr_high": {"low": 4e-4, "high": 5e-2},
    "lr_head_ratio": {"low": 0.3, "high": 10.0},
    "alpha": {"high": 1e-2},
    "beta": {"high": 1e-2},
}


def forms(*, n_blocks: int = N_BLOCKS) -> dict[str, dict[str, Any]]:
    """Return the dials of every form for a network: known ones and points in turn."""
    search = SearchSettings.parse({"space": "paper", "rows": ROWS})
    paper = space.build(search, n_blocks=n_blocks)
    points = space.design(paper, n=32, seed=SOBOL_SEED)
    sobol = {f"point {i}": space.dials_of(paper, point) for i, point in enumerate(points)}
    known = {
        name: space.known_dials(KnownRecipe(name="form", dials=dials), space=paper)
        for name, dials in KNOWN.items()
    }
    both = known | sobol
    return {name: dials.model_dump(exclude_defaults=True) for name, dials in both.items()}


def main() -> None:
    """Record what is asked for."""
    options = _options()
    keep_freed_memory()
    dials = forms(n_blocks=layers_of(timm.create_model(options.model)).n_blocks)
    unusual = {} if options.batch == BATCH else {"batch": options.batch}
    if options.model != short_runs.MODEL:
        unusual |= {"model": options.model}
    plans = [
        {"folder": folder, "form": form, "times": times, "seed": seed, **unusual}
        for times in options.times
        for seed in options.seeds
        for form in (options.forms or dials)
        for folder in options.folders
    ]
    recordings.record(
        plans,
        lambda plan: (
            short_runs.curve_of(
                _recipe(plan, dials[plan["form"]], options), home=options.home, n_points=N_POINTS
            )
            | {"dials": dials[plan["form"]]}
        ),
        output=options.output,
        part=options.part,
    )


def _recipe(plan: recordings.Line, dials: dict[str, Any], options: argparse.Namespace) -> Recipe:
    batch = plan.get("batch", BATCH)
    rate = dials.get("lr_high", Dials().lr_high) * batch / BATCH
    below, val_fraction, epochs = FOLDERS[plan["folder"]]
    return short_runs.recipe_on(
        options.data / below,
        weights=options.weights,
        home=options.home,
        data={
            "val_fraction": val_fraction,
            "test_fraction": 0.0,
            "image_px": options.image_px,
            "normalisation": options.normalisation,
        },
        train={
            "epochs": max(1, round(epochs * plan["times"])),
            "batch_size": batch,
            "seed": plan["seed"],
            "schedule": "one_cycle",
        },
        dials=dials | {"lr_high": rate},
        model=options.model,
    )


def _number(text: str) -> float:
    """Return a number that is written as it was recorded: 1 and not 1.0."""
    return int(text) if text.isdecimal() else float(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-px", type=int, default=96)
    parser.add_argument("--model", default=short_runs.MODEL, help="whose weights --weights are")
    parser.add_argument("--normalisation", default="weights", help="that the weights expect")
    parser.add_argument("--folders", nargs="*", default=list(FOLDERS))
    parser.add_argument("--forms", nargs="*", help="names; all without it")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--times", type=_number, nargs="*", default=[1], help="of 100 updates")
    parser.add_argument("--batch", type=int, default=BATCH, help="rates are in proportion")
    recordings.add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
