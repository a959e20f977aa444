"""Rows of a search space: a dial's domain, when it is searched, and what a space holds or limits.

Counts of blocks that hold for any network are 'all', and fractions such as '14/22'. At the end
stands which combinations of dials cannot be trained, and why.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Protocol

from nbtl_search.errors import SpecError
from nbtl_search.space.conditions import CONDITIONS, ORDER, PULLED, Condition
from nbtl_search.spec import Dials, SettingValue

COUNTS: Final = frozenset({"n_low", "n_l2sp", "reinit_layers", "frozen_layers"})
OF_SOURCE: Final = ("source_head", "head_start", "frozen_layers", "delta", "distill")
"""Dials that keep, pull to or learn from pre-trained weights, and so need some."""


class Suggests(Protocol):
    """The part of a trial that a space needs: three methods of `optuna.Trial`."""

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


def describe(domain: Domain) -> str:
    """Return a domain's bounds or options, such as '0.0005 to 0.05, logarithmic'."""
    if isinstance(domain, Choice):
        return ", ".join(str(option) for option in domain.options)
    scale = ", logarithmic" if isinstance(domain, Float) and domain.log else ""
    return f"{domain.low:g} to {domain.high:g}{scale}"


def count_of(name: str, value: SettingValue, n_blocks: int) -> SettingValue:
    """Resolve 'all' and fractions such as '14/22', which count blocks of any network.

    Raises:
        SpecError: it is neither a number nor one of these.
    """
    if not isinstance(value, str) or name not in COUNTS:
        return value
    if value == "all":
        return n_blocks
    try:
        return round(Fraction(value) * n_blocks)
    except (ValueError, ZeroDivisionError) as error:
        message = f"{name} must be a count, 'all' or a fraction such as '14/22', got {value!r}"
        raise SpecError(message) from error


@dataclass(frozen=True, kw_only=True)
class SpaceRow:
    """One dial that is searched, or the effective learning rate, which gives one."""

    name: str
    domain: Domain
    when: Condition | None = None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A count of blocks goes no further than the blocks that keep their pre-trained values.

    What is proposed beyond counts as this many, so that "all" can be reached whatever is new.
    """

    dial: str

    def most(self, values: Mapping[str, Any], *, n_blocks: int) -> int:
        """Return n_blocks - (reinit_layers - 1), or 0 where that is negative.

        L2-SP can go one further where the source classifier is kept: it is the last layer then.
        """
        n_new: int = values["reinit_layers"] - 1
        kept = self.dial == "n_l2sp" and values["source_head"] == "keep"
        return max(0, n_blocks - n_new) + kept

    def __str__(self) -> str:
        return f"{self.dial} <= n_blocks - (reinit_layers - 1)"


@dataclass(frozen=True, kw_only=True)
class Space:
    """The rows that are searched, in the order they are decided, and the dials held fixed."""

    n_blocks: int
    rows: tuple[SpaceRow, ...]
    fixed: Mapping[str, SettingValue] = field(default_factory=dict)
    limits: tuple[Limit, ...] = (Limit(dial="frozen_layers"),)
    pretrained: bool = True
    """Whether there are pre-trained weights to keep, pull to or learn from."""

    def row(self, name: str) -> SpaceRow | None:
        """Return the row of this dial, if it is searched."""
        return next((row for row in self.rows if row.name == name), None)

    def condition(self, name: str) -> Condition | None:
        """Return when this dial has an effect; None for always."""
        row = self.row(name)
        return CONDITIONS.get(name) if row is None else row.when

    def count(self, name: str, value: SettingValue) -> SettingValue:
        """Resolve 'all' and fractions, as `count_of` does; `limited` cuts 'all' to what there is.

        Where L2-SP is limited, all are the blocks and a source classifier that may be kept.

        Raises:
            SpecError: it is neither a number nor one of these.
        """
        if value == "all" and name == "n_l2sp" and any(one.dial == name for one in self.limits):
            return self.n_blocks + 1
        return count_of(name, value, self.n_blocks)

    def limited(self, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Return the value that a dial takes beside those decided before it."""
        for limit in self.limits:
            if limit.dial == name:
                return min(value, limit.most(values, n_blocks=self.n_blocks))
        return value


def position(row: SpaceRow) -> int:
    """Return a row's place in the order of decision."""
    return ORDER.index(row.name)


def impossible(dials: Dials, *, n_blocks: int, pretrained: bool = True) -> list[str]:
    """Return why this combination cannot be trained, one sentence each; none where it can.

    L2-SP that reaches into reinitialised blocks is not among them: it covers all blocks that are
    pre-trained then.

    Args:
        dials: to judge.
        n_blocks: of the network, a kept source classifier not counted.
        pretrained: whether there are pre-trained weights.
    """
    values = dict(dials)
    reasons = [*_contradictions(dials, values, n_blocks)]
    return reasons if pretrained else [*reasons, *_without_source(dials)]


def beyond(limit: Limit, dials: Dials, *, n_blocks: int) -> list[str]:
    """Return why a count goes too far into the network, if it does, as `impossible` does."""
    values = dict(dials)
    most = limit.most(values, n_blocks=n_blocks)
    if values[limit.dial] <= most:
        return []
    what = "must learn" if limit.dial == "frozen_layers" else "has no weights to be pulled to"
    message = (
        f"{limit} = {most}, as a reinitialised block {what}, got {values[limit.dial]} with "
        f"reinit_layers = {dials.reinit_layers}; take fewer blocks, or reinitialise fewer"
    )
    return [message]


def _contradictions(dials: Dials, values: Mapping[str, Any], n_blocks: int) -> Iterator[str]:
    yield from beyond(Limit(dial="frozen_layers"), dials, n_blocks=n_blocks)
    if dials.source_head == "keep" and dials.reinit_layers > 1:
        yield (
            "reinit_layers = 1 where source_head = 'keep', as only the layers on top of the "
            f"source classifier are new, got {dials.reinit_layers}; replace the head, or leave "
            "reinit_layers out"
        )
    if dials.head_start == "logistic" and (dials.reinit_layers > 1 or dials.source_head == "keep"):
        yield (
            "reinit_layers = 1 and source_head = 'replace' where head_start = 'logistic', as it is "
            "fitted to the features of layers that keep their weights, got "
            f"{dials.reinit_layers} and {dials.source_head!r}; leave one of them out"
        )
    if dials.dtnh != "off" and not PULLED.holds(values):
        yield (
            f"dtnh = {dials.dtnh!r} must have a pull to the source to project ({PULLED}), got "
            "none; switch one on, or dtnh off"
        )


def _without_source(dials: Dials) -> Iterator[str]:
    usual = Dials()
    for name in OF_SOURCE:
        value = getattr(dials, name)
        if value != getattr(usual, name):
            yield (
                f"{name} = {getattr(usual, name)!r} without pre-trained weights, got {value!r}; "
                "name weights, or leave it out"
            )
