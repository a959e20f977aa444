"""An ablation as `ablate` leaves it, made up."""

from collections.abc import Mapping

from nbtl_search.evidence import noise
from nbtl_search.spec.ablation import Ablation, AblationRun, Need, Worth
from nbtl_search.spec.verdict import Interval

GAINS: Mapping[str, tuple[float, Need]] = {
    "new layers": (20.0, "needed"),
    "L2-SP": (-4.0, "harmful"),
    "L2": (0.5, "cannot be told"),
}


def _worth(group: str, gain: float, need: Need, *, variant: int) -> Worth:
    return Worth(
        group=group,
        variant=variant,
        changes={"reinit_layers": (3, 1), "lr_high": (0.012345, 0.0025)},
        without=noise.summary([80.0 - gain, 82.0 - gain]),
        n_failed=0,
        gain=Interval(n=2, mean=gain, low=gain - 3, high=gain + 3),
        need=need,
    )


def make_ablation(
    *,
    name: str = "paper-best",
    gains: Mapping[str, tuple[float, Need]] = GAINS,
    state: str = "complete",
) -> Ablation:
    """Return an ablation whose groups have these gains and needs; all is worth 30 points.

    Args:
        name: of the recipe, which is trial 1's.
        gains: by group.
        state: of the first run.
    """
    groups = tuple(
        _worth(group, gain, need, variant=variant)
        for variant, (group, (gain, need)) in enumerate(gains.items(), start=1)
    )
    last = len(groups) + 1 if len(groups) > 1 else 1
    runs = tuple(
        AblationRun(
            number=number, variant=number % (last + 1), name="any", seed=2_000_000,
            state="complete" if number else state, n_epochs=6, seconds=10.0, n_attempts=1,
            val_top1=81.0,
        )
        for number in range(last + 1)
    )  # fmt: skip
    return Ablation(
        round=1,
        study="dtd10@ablation-1",
        trial=1,
        name=name,
        n_seeds=4,
        is_done=True,
        useful=0.5,
        recipe=noise.summary([80.0, 82.0]),
        groups=groups,
        total=_worth("all", 30.0, "needed", variant=last),
        runs=runs,
    )
