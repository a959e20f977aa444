"""What a dial may be: a real number, an integer, or one of a few values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nbtl_search.spec import SettingValue


class Suggests(Protocol):
    """What a space needs of a trial: three methods of `optuna.Trial`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a real number in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return an integer in [low, high]."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""
        ...


@dataclass(frozen=True, kw_only=True)
class Float:
    """A real number in [low, high], uniform or (log) uniform in its logarithm."""

    low: float
    high: float
    log: bool = False

    def suggest(self, name: str, trial: Suggests) -> float:
        """Ask the trial for a value."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def at(self, u: float) -> float:
        """Return the value at the quantile u in [0, 1)."""
        if self.log:
            return min(self.high, self.low * math.pow(self.high / self.low, u))
        return self.low + u * (self.high - self.low)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Int:
    """An integer in [low, high], both included."""

    low: int
    high: int
    usual: float = 0.0
    """Share of `low` in start-up points; 0 = all have the same."""

    def suggest(self, name: str, trial: Suggests) -> int:
        """Ask the trial for a value."""
        return trial.suggest_int(name, self.low, self.high)

    def at(self, u: float) -> int:
        """Return the value at the quantile u in [0, 1)."""
        return self.low + _index(u, self.high - self.low + 1, self.usual)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a few values without an order."""

    options: tuple[SettingValue, ...]
    usual: float = 0.0
    """Share of the first option in start-up points; 0 = all have the same."""

    def suggest(self, name: str, trial: Suggests) -> SettingValue:
        """Ask the trial for a value."""
        value: SettingValue = trial.suggest_categorical(name, self.options)
        return value

    def at(self, u: float) -> SettingValue:
        """Return the value at the quantile u in [0, 1)."""
        return self.options[_index(u, len(self.options), self.usual)]

    def __contains__(self, value: object) -> bool:
        return value in self.options


Domain = Float | Int | Choice


def _index(u: float, n: int, usual: float) -> int:
    """Return which of n values is at the quantile u, where the first has the share `usual`."""
    if usual == 0 or n == 1:
        return math.floor(u * n)
    if u < usual:
        return 0
    return min(n - 1, 1 + math.floor((u - usual) / (1 - usual) * (n - 1)))


def in_words(domain: Domain) -> str:
    """Return a domain's bounds or options, such as '0.0005 to 0.05, logarithmic'."""
    if isinstance(domain, Choice):
        return ", ".join(str(option) for option in domain.options)
    scale = ", logarithmic" if isinstance(domain, Float) and domain.log else ""
    return f"{domain.low:g} to {domain.high:g}{scale}"
