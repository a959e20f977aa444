"""Seeds of an ablation: how many it takes, and how often it finds a difference that is none.

    python benchmarks/ablation_seeds.py

Simulated ablations of five groups that are all worth the same: accuracies of 70 % minus that, on
400 images, with normal noise of 0.7 times the binomial variance. Everything runs with two seeds;
then those that cannot be told run on to four. Three rules say what can be told before the last
seed.
"""

import math
import random
import statistics

from nbtl_search.evidence import noise
from nbtl_search.evidence.noise import SeedNoise

N_GROUPS = 5
N_IMAGES = 400
N_FIRST, N_LAST = 2, 4
TOP1 = 70.0
DISPERSION = 0.7
RULES = {"four seeds for all": None, "95 % at each seed": 0.95, "99 %, then 95 %": 0.99}


def pooled(runs: list[dict[int, float]]) -> SeedNoise:
    """Return the noise of all runs."""
    return noise.seed_noise([list(one.values()) for one in runs], n_images=N_IMAGES)


def told(runs: list[dict[int, float]], group: int, *, confidence: float) -> bool:
    """Tell whether the interval of a group's worth is beside zero."""
    found = noise.gain(runs[0], runs[group], noise=pooled(runs), confidence=confidence)
    return found is not None and not found.is_tie


def simulate(early: float | None, worth: float, *, seed: int) -> tuple[float, int]:
    """Return the share of the groups that are found, and the number of runs."""
    chance = random.Random(seed)
    std = math.sqrt(DISPERSION * noise.binomial_variance(TOP1, n_images=N_IMAGES))
    means = [TOP1, *[TOP1 - worth] * N_GROUPS]
    runs = [{n: chance.gauss(mean, std) for n in range(N_FIRST)} for mean in means]
    groups = range(1, len(means))
    for n in range(N_FIRST, N_LAST):
        left = [g for g in groups if early is None or not told(runs, g, confidence=early)]
        for variant in [0, *left] if left else []:
            runs[variant][n] = chance.gauss(means[variant], std)
    share = statistics.fmean(told(runs, group, confidence=0.95) for group in groups)
    return share, sum(map(len, runs))


def main() -> None:
    """Print a row for each rule and worth."""
    print("| rule | worth | found | runs |\n|---|---|---|---|")
    for worth in (0.0, 3.0, 6.0):
        for rule, early in RULES.items():
            found = [simulate(early, worth, seed=seed) for seed in range(1500)]
            share = 100 * statistics.fmean(one for one, _ in found)
            runs = statistics.fmean(n for _, n in found)
            print(f"| {rule} | {worth:g} points | {share:.1f} % | {runs:.1f} |")


if __name__ == "__main__":
    main()
