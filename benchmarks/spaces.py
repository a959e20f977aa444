"""Search a folder of real photographs in the `paper` and in the `extended` space, side by side.

    python benchmarks/spaces.py FOLDER --weights FILE --home HOME

Both searches run at the same time with the same number of workers, so that whatever else the
machine does slows both. Prints every trial, the best accuracy that
each space had at equal cost, and then the best recipe of each and the default one, trained anew
over seeds that no search used. Cost is slot-seconds: training and validation, summed over workers.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from real_photographs import arguments, print_seeds, settings_of

import nbtl_search as nbtl

SPACES = ("paper", "extended")
PARTS = (0.25, 0.5, 0.75, 1.0)


def main() -> None:
    """Search both, print, repeat."""
    options = arguments(__doc__).parse_args()
    place = {"home": options.home}
    stem = options.name or options.folder.name
    names = {space: f"{stem}-{space}" for space in SPACES}
    for space, name in names.items():
        settings = [*settings_of(options), f"search.space='{space}'"]
        nbtl.create(str(options.folder), name=name, settings=settings, advise=False, **place)
    started = time.monotonic()
    with ProcessPoolExecutor(len(SPACES), mp_context=get_context("spawn")) as pool:
        searches = [
            pool.submit(nbtl.launch, name, workers=options.workers, **place)
            for name in names.values()
        ]
        for search in searches:
            search.result()
    print(f"both searches: {time.monotonic() - started:.0f} s, {options.workers} workers each")
    for name in names.values():
        _print_search(name, place)
    _print_equal_cost(names, place)
    recipes = {"default binary": nbtl.best(names["paper"], trial=0, **place)[0]}
    for space, name in names.items():
        best, record, _ = nbtl.best(name, **place)
        recipes[f"best of {space} (trial {record.number})"] = best
    print_seeds(recipes, options)


def _print_search(name: str, place: dict) -> None:
    report, trials = nbtl.status(name, **place)
    print(
        f"\n### {name}: complete {report.complete}, pruned {report.pruned}, failed "
        f"{report.failed}; {report.epochs_spent} epochs, "
        f"{sum(trial.seconds for trial in trials):.0f} slot-seconds\n"
    )
    print("| # | name | state | top-1 | epochs | s | settings |\n|---|---|---|---|---|---|---|")
    for trial in trials:
        value = trial.last_top1 if trial.value is None else trial.value
        cells = [
            trial.number, trial.name, trial.cause or trial.state,
            "" if value is None else f"{value:.2f}", trial.n_epochs, f"{trial.seconds:.0f}",
            " ".join(f"{dial}={_short(v)}" for dial, v in trial.dials.plain().items()),
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _print_equal_cost(names: dict[str, str], place: dict) -> None:
    """Print the best accuracy after equal shares of the cheaper search's cost."""
    ended = {}
    for space, name in names.items():
        trials = [t for t in nbtl.status(name, **place)[1] if t.finished_at is not None]
        ended[space] = sorted(trials, key=lambda trial: trial.finished_at)
    least = min(sum(trial.seconds for trial in trials) for trials in ended.values())
    print("\n| slot-seconds | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for part in PARTS:
        cells = []
        for trials in ended.values():
            spent, best, n = 0.0, 0.0, 0
            for trial in trials:
                spent += trial.seconds
                if spent > part * least * 1.0001:
                    break
                best, n = max(best, trial.value or 0.0), n + 1
            cells.append(f"{best:.2f} ({n} trials)")
        print(f"| {part * least:.0f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
