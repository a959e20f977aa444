"""Train a fixed list of recipes on a folder of photographs, and record every curve as JSON.

    python benchmarks/recipe_table.py FOLDER --name flowers --weights FILE -o flowers.json

The list has the paper's forms at several rates, points of both regimes of its table 7, and an even
design of the whole space; it is the same for every folder. `advice_replay.py` replays searches from
such tables, which costs nothing to repeat. Half of the images are for validation and none for test,
so that one image counts for little. A run that was stopped goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import tomli_w
from scipy.stats import qmc

import nbtl_search as nbtl
from nbtl_search.ledger import records
from nbtl_search.workspace.workspace import Workspace

L2 = {"n_l2sp": 0, "beta": 5e-4}
N_DESIGN = 24


def main() -> None:
    """Train, and write the table."""
    options = _options()
    options.home.mkdir(parents=True, exist_ok=True)
    found = [_trained(options, seed) for seed in range(options.seeds)]
    rows = []
    for number, trial in found[0][1].items():
        curves = [[epoch.val_top1 for epoch in curves[number]] for _, _, curves in found]
        rows.append({"name": trial.name, "dials": trial.dials.model_dump(), "val_top1": curves})
    table = {"about": _about(found[0][0]), "rows": rows}
    options.output.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", default="mobilenetv2_100")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image-px", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


def _trained(options: argparse.Namespace, seed: int) -> tuple[nbtl.StudySpec, dict, dict]:
    """Return a study of all recipes with this training seed, its trials and curves by number."""
    file = options.home / f"{options.name}-{seed}.toml"
    file.write_text(tomli_w.dumps(_study(options, seed)), encoding="utf-8")
    spec = nbtl.create(study=file, advise=False, home=options.home)
    nbtl.launch(spec.name, workers=options.workers, home=options.home)
    with Workspace(options.home).open_study(spec.name) as study:
        trials = records.trials(study.storage.engine, study.id)
        curves = records.curves(study.storage.engine, study.id)
    return spec, {trial.number: trial for trial in trials}, curves


def _study(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    known = [{"name": name, "dials": dials} for name, dials in _recipes().items()]
    return {
        "name": f"{options.name}-{seed}",
        "data": {
            "dataset": str(options.folder.resolve()),
            "val_fraction": 0.5,
            "test_fraction": 0.0,
            "image_px": options.image_px,
        },
        "model": {"name": options.model, "weights": str(options.weights.resolve())},
        "train": {
            "batch_size": 16,
            "schedule": "cosine",
            "epochs": options.epochs,
            "warmup_epochs": 2,
            "n_threads": 1,
            "device": "cpu",
            "seed": seed,
        },
        "search": {"n_startup": N_DESIGN, "pruning": {"rungs": []}, "known": known},
        "budget": {"n_trials": len(known) + N_DESIGN},
    }


def _recipes() -> dict[str, dict[str, Any]]:
    """Return the default, the paper's forms at several rates, and points of both regimes."""
    one_rate = {"n_low": 0}
    low = {"n_low": "8/22", "lr_low_ratio": 0.4}
    dtd = {"reinit_layers": 2, "n_l2sp": "14/22", "alpha": 1e-3, "beta": 1e-3, **one_rate}
    caltech = {"reinit_layers": 1, "n_l2sp": "all", "alpha": 1e-2, "beta": 1e-2, **one_rate}
    cars = {"reinit_layers": 1, **low, **L2}
    aircraft = {"reinit_layers": 3, "lr_head_ratio": 0.4, **low, **L2}
    named = {
        "default": {"reinit_layers": 1, "lr_high": 0.0025, **one_rate, **L2},
        "dtd-form-0.002": {**dtd, "lr_high": 0.002},
        "cars-form-0.01": {**cars, "lr_high": 0.01},
        "dtd-form-0.005": {**dtd, "lr_high": 0.005},
        "dtd-form-0.01": {**dtd, "lr_high": 0.01},
        "caltech-form-0.0025": {**caltech, "lr_high": 0.0025},
        "caltech-form-0.01": {**caltech, "lr_high": 0.01},
        "cars-form-0.025": {**cars, "lr_high": 0.025},
        "cars-form-0.004": {**cars, "lr_high": 0.004},
        "aircraft-form-0.025": {**aircraft, "lr_high": 0.025},
        "aircraft-form-0.01": {**aircraft, "lr_high": 0.01},
    }
    for i, u in enumerate(qmc.Sobol(5, scramble=True, rng=7).random_base2(3)):
        named[f"suited-{i}"] = {
            "reinit_layers": 1 + int(u[0] * 3),
            "lr_high": _between(u[1], 1e-3, 1e-2),
            "n_l2sp": "all" if u[2] > 0.5 else "14/22",
            "alpha": _between(u[3], 1e-3, 1e-2),
            "beta": _between(u[4], 1e-3, 1e-2),
            **one_rate,
        }
    for i, u in enumerate(qmc.Sobol(4, scramble=True, rng=8).random_base2(2)):
        named[f"unsuited-{i}"] = {
            "reinit_layers": 1,
            "lr_high": _between(u[0], 5e-3, 4e-2),
            "n_low": "8/22" if u[1] > 0.5 else "10/22",
            "lr_low_ratio": _between(u[2], 0.4, 0.6),
            "n_l2sp": 0,
            "beta": _between(u[3], 1e-4, 1e-3),
        }
    return named


def _between(u: float, low: float, high: float) -> float:
    return float(f"{low * (high / low) ** u:.4g}")


def _about(spec: nbtl.StudySpec) -> dict[str, Any]:
    facts = spec.facts
    return {
        "model": spec.model.name,
        "image_px": spec.data.image_px,
        "epochs": spec.train.epochs,
        "batch_size": spec.train.batch_size,
        "n_blocks": facts.n_blocks,
        "n_classes": facts.n_classes,
        "n_train": facts.n_train,
        "n_val": facts.n_val,
    }


if __name__ == "__main__":
    main()
