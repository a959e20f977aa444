"""Importance of the dials: which mattered, by PED-ANOVA over the complete trials, and in words."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import optuna

from nbtl_search import space
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.space import Choice, Float, Int, Space

MIN_TRIALS: Final = 10
FEW_TRIALS: Final = 50  # a tenth of them are five, which PED-ANOVA wants (its documentation)
_N_PARTS: Final = 3  # of a range whose lowest value is the usual one
_CLEAR: Final = 0.3  # of the whole: what stands out among eight dials, and more so among twenty
NAMES: Final = {
    "reinit_layers": "new layers",
    "lr_high": "learning rate",
    "lr_head_ratio": "rate of the classifier",
    "n_low": "blocks at the low rate",
    "lr_low_ratio": "low rate / high rate",
    "n_l2sp": "L2-SP blocks",
    "alpha": "L2-SP strength",
    "beta": "L2 strength",
    "momentum": "momentum",
    "effective_lr": "effective rate, lr_high / (1 - momentum)",
    "frozen_layers": "frozen blocks",
    "source_head": "source classifier",
    "head_start": "classifier's start",
    "layer_decay": "rate / block above",
    "delta": "DELTA",
    "delta_alpha": "DELTA strength",
    "distill": "distillation",
    "distill_temperature": "distillation temperature",
    "dtnh": "DTNH",
    "bss": "spectral shrinkage",
    "stochnorm_p": "stochastic norm",
    "decay_updates": "updates between decays",
    "decay_factor": "factor of a decay",
}


@dataclass(frozen=True, kw_only=True)
class Importances:
    """Shares of the dials, which sum to 1, the largest first; none, and why not, in `reading`."""

    shares: Mapping[str, float] = field(default_factory=dict)
    n_trials: int
    reading: str


def importances(trials: Sequence[TrialRecord], searched: Space) -> Importances:
    """Share out among the dials what told the best tenth of the complete trials from the rest.

    Conditional PED-ANOVA (Watanabe, Bansal and Hutter 2023, arXiv 2304.10255), Optuna's default.
    Dials that fewer than `MIN_TRIALS` of them used have no share.
    """
    complete = [t for t in trials if t.state == "complete" and t.value is not None]
    n = len(complete)
    if n < MIN_TRIALS:
        many = "trial has" if n == 1 else "trials have"
        reading = f"{n} {many} run to the end; below {MIN_TRIALS} no importance can be told."
        return Importances(n_trials=n, reading=reading)
    if len({trial.value for trial in complete}) == 1:
        reading = f"All {n} complete trials have the same accuracy: no dial can have mattered."
        return Importances(n_trials=n, reading=reading)
    params = [space.params_of(searched, trial.dials) for trial in complete]
    n_used = {row.name: sum(row.name in found for found in params) for row in searched.rows}
    rare = _rarely([name for name, used in n_used.items() if used < MIN_TRIALS])
    told = sorted(name for name, used in n_used.items() if used >= MIN_TRIALS)
    raw = _ped_anova(complete, searched, told)
    if sum(raw.values()) <= 0:
        reading = f"Among {n} complete trials no dial tells the best from the rest.{rare}"
        return Importances(n_trials=n, reading=reading)
    whole = sum(raw.values())
    ranked = sorted(raw.items(), key=lambda item: (-item[1], item[0]))
    shares = {name: value / whole for name, value in ranked}
    return Importances(shares=shares, n_trials=n, reading=_reading(shares, n) + rare)


def _rarely(names: Sequence[str]) -> str:
    return f" Too few trials used: {', '.join(map(_named, names))}." if names else ""


def _ped_anova(
    complete: Sequence[TrialRecord], searched: Space, told: list[str]
) -> dict[str, float]:
    if not told:
        return {}
    domains = {row.name: row.domain for row in searched.rows}
    distributions = {name: _distribution(domain) for name, domain in domains.items()}
    study = optuna.create_study(
        direction="maximize",
        storage=optuna.storages.InMemoryStorage(),
        pruner=optuna.pruners.NopPruner(),
    )
    for trial in complete:
        params = {
            name: _part(domains[name], value)
            for name, value in space.params_of(searched, trial.dials).items()
        }
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions={name: distributions[name] for name in params},
                value=trial.value,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, of few trials, which `_reading` says
        return optuna.importance.get_param_importances(study, params=told, normalize=False)


def _part(domain: space.Domain, value: Any) -> Any:
    """Return the value, or which part of its range it is in where most trials have the lowest.

    A density that is smoothed over the whole range makes rare values look as if they had mattered.
    """
    if not (isinstance(domain, Int) and domain.usual):
        return value
    if value == domain.low:
        return 0
    return 1 + min(_N_PARTS - 1, _N_PARTS * (value - domain.low - 1) // (domain.high - domain.low))


def _distribution(domain: space.Domain) -> optuna.distributions.BaseDistribution:
    if isinstance(domain, Choice):
        return optuna.distributions.CategoricalDistribution(domain.options)
    if isinstance(domain, Float):
        return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
    if domain.usual:
        return optuna.distributions.CategoricalDistribution(tuple(range(_N_PARTS + 1)))
    return optuna.distributions.IntDistribution(domain.low, domain.high)


def _reading(shares: Mapping[str, float], n: int) -> str:
    (first, share), *others = shares.items()
    text = f"{_named(first)} mattered most ({share:.0%} of the importance)"
    clear = [f"{_named(name)} ({share:.0%})" for name, share in others if share >= _CLEAR]
    if clear:
        text += f", then {' and '.join(clear)}"
    if share < _CLEAR:
        text = f"No dial stands out; {_named(first)} comes first with {share:.0%}"
    idle = [_named(name) for name, share in shares.items() if share < 0.02]
    text += f"; hardly any effect: {', '.join(idle)}." if idle else "."
    text = text[0].upper() + text[1:]
    top = max(2, n // 10)
    text += f" It is what tells the best tenth from the rest of {n} complete trials"
    if n < FEW_TRIALS:
        text += f"; that tenth is about {top} trials, so take it as a hint"
    return text + "."


def _named(dial: str) -> str:
    return f"{NAMES.get(dial, dial)}"
