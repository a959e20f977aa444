"""One default run of fastai beside ours: the same images, splits, weights, pixels and epochs.

    python benchmarks/against_fastai.py ours --data FOLDERS --weights FILE --home HOME -o ours.jsonl
    python benchmarks/against_fastai.py export --data FOLDERS --weights FILE --home HOME -o shared
    FASTAI_PYTHON benchmarks/against_fastai.py fastai --shared shared -o fastai.jsonl
    python benchmarks/against_fastai.py table ours.jsonl fastai.jsonl

`fastai` runs in an environment of its own, which needs fastai and timm and nothing of this project:
what it shares with ours, images and weights, is written by `export`. It takes fastai's defaults:
`fine_tune` (an epoch of the new head alone, then all layers, one cycle each, Adam), its head, its
`aug_transforms`, its splitter. Ours are the recipes that a folder's study tries first, in order.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import recordings

N_SEEDS = 3
N_TRIED = 8
IMAGE_PX = 96
BATCH = 32
RATES = (1e-3, 2e-3, 5e-3)
# Folder below --data, and epochs for about 100 updates. Shares are of a folder without a split.
FOLDERS: dict[str, tuple[str, int]] = {
    "dtd10": ("dtd10/images", 16),
    "flowers": ("flowers", 32),
    "caltech101_25": ("caltech101_25/101_ObjectCategories", 6),
    "clothing10": ("clothing10", 6),
    "sign_digits": ("sign_digits", 7),
    "blood_cells": ("blood_cells", 20),
}
VAL, TEST = 0.25, 0.25
SPLITS = ("train", "val", "test")


def main() -> None:
    """Do what the first argument says."""
    options = _options()
    match options.what:
        case "ours":
            record_ours(options)
        case "export":
            export(options)
        case "fastai":
            record_fastai(options)
        case "table":
            print_table(options.files)


def record_ours(options: argparse.Namespace) -> None:
    """Train the first recipes of a folder's study, with each seed."""
    from nbtl_search.network.allocator import keep_freed_memory  # noqa: PLC0415

    keep_freed_memory()
    known = known_forms()
    plans = [
        {"folder": folder, "recipe": name, "seed": seed, "form": json.dumps(known[name])}
        for seed in range(options.first_seed, options.seeds)
        for name in (options.recipes or list(known)[: options.n_recipes])
        for folder in options.folders
    ]

    def made(plan: dict[str, Any]) -> dict[str, Any]:
        return _trained_ours(plan, known[plan["recipe"]], options)

    recordings.record(plans, made, output=options.output, part=options.part)


def known_forms() -> dict[str, dict[str, Any]]:
    """Return the dials of the recipes in folder.toml, for MobileNetV2, in their order."""
    import forms  # noqa: PLC0415

    from nbtl_search import space  # noqa: PLC0415
    from nbtl_search.spec import StudySpec  # noqa: PLC0415
    from nbtl_search.spec.study import shipped_study  # noqa: PLC0415

    search = StudySpec.parse(shipped_study("folder")).search
    built = space.build(search, n_blocks=forms.N_BLOCKS)
    return {
        known.name: space.known_dials(known, space=built).model_dump(exclude_defaults=True)
        for known in search.known
    }


def recipe_of(
    plan: dict[str, Any], dials: dict[str, Any], options: argparse.Namespace, **train: Any
) -> Any:
    """Return the recipe of a run on a folder's own split, with further settings of `train`."""
    import short_runs  # noqa: PLC0415

    below, epochs = FOLDERS[plan["folder"]]
    return short_runs.recipe_on(
        options.data / below,
        weights=options.weights,
        home=options.home,
        data={"val_fraction": VAL, "test_fraction": TEST, "image_px": IMAGE_PX},
        train={
            "epochs": epochs,
            "batch_size": BATCH,
            "seed": plan["seed"],
            "schedule": "one_cycle",
            **train,
        },
        dials=dials,
    )


def _trained_ours(
    plan: dict[str, Any], dials: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    import short_runs  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from nbtl_search.data.prepared import prepare  # noqa: PLC0415
    from nbtl_search.training.run import Run  # noqa: PLC0415

    recipe = recipe_of(plan, dials, options)
    prepared = prepare(recipe.data, home=options.home)
    run = Run(recipe, prepared=prepared, home=options.home)
    for _ in short_runs.epochs_of(run, 1):
        pass
    kept = kept_weights(options.home, plan)
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(run.network.model.state_dict(), kept)
    return {
        "dials": dials,
        "updates": run.n_updates * recipe.train.epochs,
        "n_train": prepared.n_train,
        "n_val": prepared.n_val,
        **scores_of(run, home=options.home),
    }


def scores_of(run: Any, *, home: Path) -> dict[str, float]:
    """Return top-1 of a run's network on validation and test images."""
    from nbtl_search.data.loader import EvalBatches  # noqa: PLC0415
    from nbtl_search.data.prepared import prepare  # noqa: PLC0415
    from nbtl_search.training.evaluation import evaluate  # noqa: PLC0415

    scores = {}
    for split in ("val", "test"):
        batches = EvalBatches(
            prepare(run.recipe.data, home=home, splits=(split,)),
            split,
            format=run.network.image_format,
            batch_size=BATCH,
            device=run.placement.device,
        )
        found = evaluate(run.network.model, batches, placement=run.placement)
        scores |= {f"{split}_top1": found.top1, f"n_{split}": found.n_images}
    return scores


def kept_weights(home: Path, plan: dict[str, Any]) -> Path:
    """Return the file that has the weights of one of our runs."""
    return home / "kept" / f"{plan['folder']}-{plan['recipe']}-{plan['seed']}.pth"


def export(options: argparse.Namespace) -> None:
    """Write the splits of every folder, and the weights as a plain state dict of timm."""
    import torch  # noqa: PLC0415

    from nbtl_search.data.prepared import prepare  # noqa: PLC0415
    from nbtl_search.network.weights import read_weights  # noqa: PLC0415

    options.output.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        recipe = recipe_of({"folder": folder, "seed": 0}, {}, options)
        manifest = prepare(recipe.data, home=options.home, splits=SPLITS).manifest
        rows = [
            {"path": str(item.path), "label": manifest.classes[item.label], "split": split}
            for split in SPLITS
            for item in manifest.items(split)
        ]
        (options.output / f"{folder}.json").write_text(json.dumps(rows))
    torch.save(
        dict(read_weights(recipe.model, home=options.home).state), options.output / "weights.pth"
    )


def record_fastai(options: argparse.Namespace) -> None:
    """Run `fine_tune` at each base rate, with each seed."""
    plans = [
        {"folder": folder, "rate": rate, "seed": seed}
        for seed in range(options.seeds)
        for rate in RATES
        for folder in options.folders
    ]
    recordings.record(
        plans,
        lambda plan: _fine_tuned(**plan, shared=options.shared),
        output=options.output,
        part=options.part,
    )


def _fine_tuned(*, folder: str, rate: float, seed: int, shared: Path) -> dict[str, float]:
    import fastai.vision.all as fv  # noqa: PLC0415
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    rows = json.loads((shared / f"{folder}.json").read_text())
    learnt = [row for row in rows if row["split"] != "test"]
    tested = [row for row in rows if row["split"] == "test"]
    fv.set_seed(seed, reproducible=True)
    block = fv.DataBlock(
        blocks=(fv.ImageBlock, fv.CategoryBlock(vocab=sorted({row["label"] for row in rows}))),
        get_x=lambda row: row["path"],
        get_y=lambda row: row["label"],
        splitter=fv.IndexSplitter([i for i, row in enumerate(learnt) if row["split"] == "val"]),
        item_tfms=fv.Resize(2 * IMAGE_PX),
        batch_tfms=[
            *fv.aug_transforms(size=IMAGE_PX, min_scale=0.75),
            fv.Normalize.from_stats(*fv.imagenet_stats),
        ],
    )
    loaders = block.dataloaders(learnt, bs=BATCH, num_workers=0, device=torch.device("cpu"))
    learner = fv.vision_learner(
        loaders, "mobilenetv2_100", pretrained=False, normalize=False, metrics=fv.accuracy
    )
    state = torch.load(shared / "weights.pth", weights_only=True)
    missing, _ = learner.model[0].model.load_state_dict(state, strict=False)
    if missing:
        message = f"all weights of the body, got none for {missing[:3]}"
        raise ValueError(message)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(FOLDERS[folder][1] - 1, base_lr=rate, freeze_epochs=1)
        validated = float(learner.validate()[1])
        predicted, _ = learner.get_preds(dl=loaders.test_dl(tested))
    vocabulary = list(loaders.vocab)
    labels = torch.tensor([vocabulary.index(row["label"]) for row in tested])
    right = (predicted.argmax(dim=1) == labels).float().mean()
    return {"val_top1": 100 * validated, "test_top1": 100 * float(right)}


def print_table(files: list[Path]) -> None:
    """Print mean and spread over the seeds: validation / test."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in recordings.read(files):
        name = line.get("recipe") or f"fastai, base rate {line['rate']:g}"
        found[name][line["folder"]].append((line["val_top1"], line["test_top1"]))
    _add_recommended(found)
    print(f"| recipe | {' | '.join(FOLDERS)} |")
    print("|---|" + "---|" * len(FOLDERS))
    for name, row in found.items():
        print(f"| {name} | {' | '.join(_cell(row.get(folder, [])) for folder in FOLDERS)} |")


def _add_recommended(found: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    """Add the recipe with the best first run on validation images, with its other runs alone.

    So the run that chose it does not count for it. `found` has the runs by seed, the first first.
    """
    ours = [name for name in found if not name.startswith("fastai")]
    for folder in FOLDERS:
        tried = {name: found[name][folder] for name in ours if found[name].get(folder)}
        if len(tried) >= N_TRIED:
            best = max(tried, key=lambda name: tried[name][0][0])
            found[f"recommended after {N_TRIED} trials"][folder] = tried[best][1:]


def _cell(pairs: list[tuple[float, float]]) -> str:
    if not pairs:
        return ""
    return (
        " / ".join(
            f"{statistics.mean(values):.1f}"
            + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
            for values in zip(*pairs, strict=True)
        )
        + f" ({len(pairs)})"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("ours", "export", "fastai"):
        command = commands.add_parser(name)
        command.add_argument("-o", "--output", type=Path, required=True)
        command.add_argument("--folders", nargs="*", default=list(FOLDERS))
        command.add_argument("--seeds", type=int, default=N_SEEDS)
        command.add_argument("--part", default="1/1")
        if name == "fastai":
            command.add_argument("--shared", type=Path, required=True)
        else:
            command.add_argument("--data", type=Path, required=True)
            command.add_argument("--weights", type=Path, required=True)
            command.add_argument("--home", type=Path, required=True)
            command.add_argument("--n-recipes", type=int, default=1)
            command.add_argument("--recipes", nargs="*", help="names, in the place of the first n")
            command.add_argument("--first-seed", type=int, default=0)
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
