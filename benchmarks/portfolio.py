"""Choose few forms that serve many folders, from a recording of `forms.py`, and judge the choice.

    python benchmarks/portfolio.py benchmarks/tables/forms*.jsonl

A user runs the first k forms of a portfolio once each and keeps the one that validates best. What
that is worth follows from the accuracies mu of the forms on a folder and from the noise of a run;
both are uncertain, so everything is an average over draws of them:

    mu_fd = m_d + a_f + b_fd,   y = mu_fd + noise_d        (f a form, d a folder)

with the variances of b and of the noise as the recording gives them (a run's noise is that of its
seed and of few validation images). The portfolio is greedy: each form is the one that adds most to
the mean over the folders of E[mu of the form that validates best]. Judged is it on each folder by a
portfolio chosen from the others alone, with draws of mu that follow from that folder's own runs:
regret, in points, against the best form of each draw. The best of many noisy forms looks better
than it is, so all regrets are too high by about as much; what is told is their differences.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import recordings
from numpy.typing import NDArray

N_DRAWS = 2000
SIZES = (1, 2, 4, 8)
BEFORE = ("one rate, 0.0025", "suited", "unsuited")  # first trials of a folder until now
GOOD = 1.0  # points below the best form of a folder that a form may be to count as good

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Accuracies by form and folder: means over seeds, and how many seeds."""

    forms: list[str]
    folders: list[str]
    mean: Array
    n: Array
    noise: Array
    """Standard deviation of one run, by folder."""

    def without(self, folder: int) -> "Table":
        """Return the table of the other folders."""
        keep = [d for d in range(len(self.folders)) if d != folder]
        return Table(
            forms=self.forms,
            folders=[self.folders[d] for d in keep],
            mean=self.mean[:, keep],
            n=self.n[:, keep],
            noise=self.noise[keep],
        )


def read(paths: Sequence[Path], *, times: int) -> Table:
    """Return the forms that every folder has, with the last epoch's accuracy.

    A run that diverged counts as zero. The noise is pooled over the forms that have several
    seeds, and no less than that of drawing the validation images.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    n_val = {}
    for line in recordings.read(paths):
        if line["times"] == times and "batch" not in line:
            value = 0.0 if line.get("error") else line["val_top1"][-1]  # no form wins by it
            found[line["form"]][line["folder"]].append(value)
            n_val[line["folder"]] = line["n_val"]
    folders = list(n_val)
    forms = [form for form, row in found.items() if row.keys() >= n_val.keys()]
    cells = [[found[form][folder] for folder in folders] for form in forms]
    noise = [_noise([row[d] for row in cells], n_val[name]) for d, name in enumerate(folders)]
    return Table(
        forms=forms,
        folders=folders,
        mean=np.array([[np.mean(cell) for cell in row] for row in cells]),
        n=np.array([[len(cell) for cell in row] for row in cells], dtype=float),
        noise=np.array(noise),
    )


def _noise(cells: Sequence[Sequence[float]], n_val: int) -> float:
    repeated = [cell for cell in cells if len(cell) > 1]
    share = np.quantile([np.mean(cell) for cell in cells], 0.8) / 100
    least = 100 * float(np.sqrt(share * (1 - share) / n_val))
    if not repeated:
        return least
    squares = sum(np.var(cell) * len(cell) for cell in repeated)
    return max(least, float(np.sqrt(squares / sum(len(cell) - 1 for cell in repeated))))


def drawn(table: Table, rng: np.random.Generator) -> Array:
    """Return draws of mu given the recording: draws x forms x folders."""
    folder = np.median(table.mean, axis=0)
    residual = table.mean - folder
    of_noise = table.noise**2 / table.n
    form = np.mean(residual, axis=1, keepdims=True)
    # What the folder says beside the form, by the method of moments; forms far below the others
    # tell nothing of those that matter.
    upper = (form >= np.median(form)).ravel()
    between = np.mean((residual - form)[upper] ** 2) - np.mean(of_noise[upper])
    spread = max(1.0, float(between))
    weight = spread / (spread + of_noise)
    centre = folder + form + weight * (residual - form)
    scale = np.sqrt(weight * of_noise)
    return centre + scale * rng.standard_normal((N_DRAWS, *centre.shape))


def alone(table: Table, folder: int, rng: np.random.Generator) -> Array:
    """Return draws of mu on one folder that no other folder has a part in: draws x forms x 1."""
    centre = table.mean[:, folder]
    scale = table.noise[folder] / np.sqrt(table.n[:, folder])
    draws: Array = (centre + scale * rng.standard_normal((N_DRAWS, len(centre))))[:, :, None]
    return draws


def worth(mu: Array, seen: Array, chosen: Sequence[int]) -> Array:
    """Return mu of the chosen form that is seen to be best: draws x folders."""
    best = seen[:, chosen].argmax(axis=1)
    taken: Array = np.take_along_axis(mu[:, chosen], best[:, None], axis=1)[:, 0]
    return taken


def greedy(table: Table, *, size: int, rng: np.random.Generator) -> list[int]:
    """Return the forms in the order in which they add most."""
    mu = drawn(table, rng)
    seen = mu + table.noise * rng.standard_normal(mu.shape)
    chosen: list[int] = []
    for _ in range(min(size, len(table.forms))):
        others = [f for f in range(len(table.forms)) if f not in chosen]
        chosen.append(max(others, key=lambda f: float(worth(mu, seen, [*chosen, f]).mean())))
    return chosen


def main() -> None:
    """Print the portfolio, and what it is worth."""
    options = _options()
    table = read(options.tables, times=options.times)
    rng = np.random.default_rng(0)
    mu = drawn(table, rng)
    print(f"{len(table.forms)} forms; noise of a run: ", end="")
    print(", ".join(f"{n} {s:.1f}" for n, s in zip(table.folders, table.noise, strict=True)))
    _print_portfolio(table, mu, greedy(table, size=max(SIZES), rng=rng))
    _print_regret(table, rng)


def _print_portfolio(table: Table, mu: Array, chosen: Sequence[int]) -> None:
    centre = mu.mean(axis=0)
    best = centre.max(axis=0)
    print(f"\n| | form | good on, recorded | shrunken | {' | '.join(table.folders)} |")
    print("|---|---|---|---|" + "---|" * len(table.folders))
    for rank, form in enumerate(chosen, start=1):
        n_good = int((table.mean[form] >= table.mean.max(axis=0) - GOOD).sum())
        n_shrunken = int((centre[form] >= best - GOOD).sum())
        row = " | ".join(f"{value:.1f}" for value in table.mean[form])
        print(f"| {rank} | {table.forms[form]} | {n_good} | {n_shrunken} | {row} |")
    print(f"| | best of all, shrunken | | | {' | '.join(f'{value:.1f}' for value in best)} |")


def _print_regret(table: Table, rng: np.random.Generator) -> None:
    """Print the regret on each folder of what was chosen without it."""
    names = ("portfolio of the others", "forms in random order", "the forms of before")
    regrets: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in names}
    before = [table.forms.index(name) for name in BEFORE]
    for d, noise in enumerate(table.noise):
        chosen = greedy(table.without(d), size=max(SIZES), rng=rng)
        here = alone(table, d, rng)
        seen = here + noise * rng.standard_normal(here.shape)
        best = float(here.max(axis=1).mean())
        for size in SIZES:
            orders = [rng.permutation(len(table.forms))[:size] for _ in range(100)]
            at_random = np.mean([worth(here, seen, list(order)).mean() for order in orders])
            regrets[names[0]][size].append(best - worth(here, seen, chosen[:size]).mean())
            regrets[names[1]][size].append(best - float(at_random))
            regrets[names[2]][size].append(best - worth(here, seen, before[:size]).mean())
    print(f"\n| regret after | {' | '.join(f'{n} runs' for n in SIZES)} |")
    print("|---|" + "---|" * len(SIZES))
    for name, by_size in regrets.items():
        cells = [
            f"{np.mean(by_size[n]):.1f} ({' '.join(f'{r:.1f}' for r in by_size[n])})" for n in SIZES
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--times", type=int, default=1, help="of 100 updates")
    return parser.parse_args()


if __name__ == "__main__":
    main()
