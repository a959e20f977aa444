"""Search a folder of real photographs, then compare the best recipe with the default over seeds.

    python benchmarks/real_photographs.py FOLDER --model mobilenetv2_100 --weights FILE

One run of the search decides nothing: seeds differ by points. So the best recipe, the default
binary recipe, and the default recipe from random weights (at several rates) are trained anew with
the same seeds, none of which the search used. Prints Markdown tables.
"""

import argparse
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbtl_search as nbtl
from nbtl_search.spec import Recipe

RANDOM_RATES = (0.0025, 0.01, 0.04)


def main() -> None:
    """Search, repeat, print."""
    options = _options()
    name = options.name or options.folder.name
    place = {"home": options.home}
    started = time.monotonic()
    nbtl.create(str(options.folder), name=name, settings=settings_of(options), **place)
    nbtl.launch(name, workers=options.workers, **place)
    search_s = time.monotonic() - started
    report, trials = nbtl.status(name, **place)
    print(f"\n### {name}: {report.n_trials} trials of {report.n_epochs} epochs\n")
    print(
        f"complete {report.complete}, pruned {report.pruned}, failed {report.failed}; "
        f"{report.epochs_spent} epochs; {search_s:.0f} s with {options.workers} workers\n"
    )
    _print_trials(trials)
    best, record, _ = nbtl.best(name, **place)
    default, *_ = nbtl.best(name, trial=0, **place)
    recipes = {f"best found (trial {record.number})": best, "default binary": default}
    for rate in RANDOM_RATES if options.random else ():
        dials = default.dials.replace(lr_high=rate)
        model = default.model.replace(weights="random")
        recipes[f"random weights, rate {rate}"] = default.replace(dials=dials, model=model)
    print_seeds(recipes, options)


def _options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--random", action="store_true", help="also from random weights")
    return parser.parse_args()


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the options of a search of a folder."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", default="mobilenetv2_100")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image-px", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4)
    return parser


def settings_of(options: argparse.Namespace) -> list[str]:
    """Return the settings of a study with these options."""
    return [
        f"model.name='{options.model}'",
        f"model.weights='{options.weights.resolve()}'",
        f"data.image_px={options.image_px}",
        f"train.epochs={options.epochs}",
        f"train.batch_size={options.batch_size}",
        f"budget.n_trials={options.trials}",
    ]


def _print_trials(trials: list) -> None:
    columns = [
        "#",
        "name",
        "state",
        "top-1",
        "epochs",
        "new",
        "lr",
        "head-x",
        "low",
        "low-x",
        "L2-SP",
        "alpha",
        "beta",
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for trial in trials:
        d, value = trial.dials, trial.value
        low = (d.n_low, f"{d.lr_low_ratio:.2g}") if d.n_low else ("", "")
        sp = (d.n_l2sp, f"{d.alpha:.2g}") if d.n_l2sp else ("", "")
        cells = [
            trial.number, trial.name, trial.state, "" if value is None else f"{value:.2f}",
            trial.n_epochs, d.reinit_layers, f"{d.lr_high:.2g}", f"{d.lr_head_ratio:.2g}",
            *low, *sp, f"{d.beta:.2g}",
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def _top1(job: tuple[str, Path]) -> tuple[float, float]:
    """Return the best and the last epoch's accuracy of a recipe."""
    text, home = job
    epochs = list(nbtl.train(Recipe.parse_json(text), home=home))
    return max(epoch.val_top1 for epoch in epochs), epochs[-1].val_top1


def print_seeds(recipes: dict[str, Recipe], options: argparse.Namespace) -> None:
    """Train each recipe anew with seeds from 1 on, and print a table of their accuracies."""
    seeds = range(1, 1 + options.seeds)
    jobs = [
        (recipe.replace(train=recipe.train.replace(seed=seed)).model_dump_json(), options.home)
        for recipe in recipes.values()
        for seed in seeds
    ]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_top1, jobs))
    print(f"\nvalidation top-1, best epoch and last epoch, n = {options.seeds} seeds (1..):\n")
    print("| recipe | best epoch, mean ± sd | last epoch, mean ± sd | each (best epoch) |")
    print("|---|---|---|---|")
    for index, name in enumerate(recipes):
        rows = results[index * options.seeds : (index + 1) * options.seeds]
        columns = [[row[0] for row in rows], [row[1] for row in rows]]
        means = [f"{statistics.mean(c):.2f} ± {statistics.stdev(c):.2f}" for c in columns]
        each = ", ".join(f"{row[0]:.2f}" for row in rows)
        print(f"| {name} | {means[0]} | {means[1]} | {each} |")


if __name__ == "__main__":
    main()
