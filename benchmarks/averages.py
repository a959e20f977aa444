"""Averages of weights beside their members, as `finalize` would choose them.

    python benchmarks/averages.py record ours.jsonl --data FOLDERS --weights FILE --home HOME \
        -o averages.jsonl
    python benchmarks/averages.py table ours.jsonl averages.jsonl

`ours.jsonl` is what `against_fastai.py ours` has recorded, with the weights it has kept below the
same home. Candidates are the default and the three others with the best validation of one seed, as
after a search of so many trials; averages are tried as `nbtl_search.study.averages` says.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import against_fastai
import recordings
import torch

from nbtl_search.data.prepared import prepare
from nbtl_search.spec import Dials
from nbtl_search.study.averages import next_averages
from nbtl_search.training.averaging import average_of, measure_batch_norm
from nbtl_search.training.final_run import Kept

N_CANDIDATES = 3
Line = recordings.Line


def main() -> None:
    """Do what the first argument says."""
    options = _options()
    if options.what == "record":
        record(options)
    else:
        print_table(options)


def record(options: argparse.Namespace) -> None:
    """Try the averages of every folder and seed that has all its candidates."""
    torch.set_num_threads(1)
    done = {_key(line): line for line in recordings.read([options.output])}
    for folder in against_fastai.FOLDERS:
        for seed, candidates in _candidates(options.ours, folder).items():
            names = list(candidates)
            dials = {i: Dials.parse(line["dials"]) for i, line in enumerate(candidates.values())}
            means: dict[tuple[int, ...], float] = {
                (i,): line["val_top1"] for i, line in enumerate(candidates.values())
            }
            while wanted := next_averages(dials, means):
                for average in wanted:
                    plan = {
                        "folder": folder,
                        "seed": seed,
                        "recipes": [names[i] for i in average],
                    }
                    if _key(plan) not in done:
                        recordings.record(
                            [plan],
                            lambda plan, candidates=candidates: _scored(plan, candidates, options),
                            output=options.output,
                        )
                        done = {_key(line): line for line in recordings.read([options.output])}
                    means[average] = done[_key(plan)]["val_top1"]


def _key(line: Line) -> tuple[Any, ...]:
    return line["folder"], line["seed"], tuple(line["recipes"])


def _candidates(ours: Path, folder: str) -> dict[int, dict[str, Line]]:
    """Return the lines of each seed's candidates by recipe, the default first."""
    lines = [
        line for line in recordings.read([ours]) if "recipe" in line and line["folder"] == folder
    ]
    chosen = {}
    for seed in sorted({line["seed"] for line in lines}):
        mine = {line["recipe"]: line for line in lines if line["seed"] == seed}
        others = sorted(
            (name for name in mine if name != "default"), key=lambda n: -mine[n]["val_top1"]
        )
        if "default" in mine and len(others) >= N_CANDIDATES:
            chosen[seed] = {name: mine[name] for name in ("default", *others[:N_CANDIDATES])}
    return chosen


def _scored(plan: Line, candidates: dict[str, Line], options: argparse.Namespace) -> Line:
    first = candidates[plan["recipes"][0]]
    recipe = against_fastai.recipe_of(plan, first["dials"], options)
    prepared = prepare(recipe.data, home=options.home)
    members = [
        Kept(
            state=torch.load(
                against_fastai.kept_weights(options.home, plan | {"recipe": name}),
                weights_only=True,
            ),
            recipe=recipe,
            data_digest=prepared.digest,
            micro_batch=recipe.train.batch_size,
        )
        for name in plan["recipes"]
    ]
    run = average_of(members, recipe, prepared=prepared, home=options.home)
    for _ in measure_batch_norm(run):
        pass
    return against_fastai.scores_of(run, home=options.home)


def print_table(options: argparse.Namespace) -> None:
    """Print the default, the best candidate and the best average: validation / test."""
    averages = recordings.read([options.averages])
    gains: list[tuple[float, float]] = []
    print("| folder | seed | default | best recipe | best average | of |")
    print("|---|---|---|---|---|---|")
    for folder in against_fastai.FOLDERS:
        for seed, candidates in _candidates(options.ours, folder).items():
            mine = [a for a in averages if (a["folder"], a["seed"]) == (folder, seed)]
            best = max(candidates.values(), key=lambda line: line["val_top1"])
            if mine:
                average = max(mine, key=lambda line: line["val_top1"])
                member = max(
                    (candidates[name] for name in average["recipes"]),
                    key=lambda line: line["val_top1"],
                )
                gains.append(
                    (
                        average["val_top1"] - member["val_top1"],
                        average["test_top1"] - member["test_top1"],
                    )
                )
            cells = [_cell(candidates["default"]), f"{best['recipe']} {_cell(best)}"]
            cells += [_cell(average), ", ".join(average["recipes"])] if mine else ["", ""]
            print(f"| {folder} | {seed} | {' | '.join(cells)} |")
    print()
    for name, values in zip(("validation", "test"), zip(*gains, strict=True), strict=True):
        print(
            f"* best average over its best member, {name}: {statistics.mean(values):+.2f} "
            f"± {statistics.stdev(values):.2f} (n = {len(values)})"
        )


def _cell(line: Line) -> str:
    return f"{line['val_top1']:.1f} / {line['test_top1']:.1f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("record")
    command.add_argument("ours", type=Path)
    recordings.add_options(command)
    command = commands.add_parser("table")
    command.add_argument("ours", type=Path)
    command.add_argument("averages", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
