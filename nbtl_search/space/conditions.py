"""Conditions: which dials have an effect beside which others, as data.

A condition looks only at dials that are decided before its own (`ORDER`). Where it does not hold,
the dial has no effect: nothing proposes a value for it, and it stays at its default.

Which combinations of dials cannot be trained, and why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nbtl_search.spec import Dials

ORDER: Final = (
    "source_head",
    "head_start",
    "reinit_layers",
    "frozen_layers",
    "effective_lr",
    "lr_high",
    "momentum",
    "lr_head_ratio",
    "layer_decay",
    "n_low",
    "lr_low_ratio",
    "n_l2sp",
    "alpha",
    "beta",
    "delta",
    "delta_alpha",
    "distill",
    "distill_temperature",
    "dtnh",
    "bss",
    "stochnorm_p",
    "decay_updates",
    "decay_factor",
)
"""The order of decision. `effective_lr` is no dial: it gives lr_high."""


@dataclass(frozen=True, kw_only=True)
class When:
    """Another dial is above a number, or above a third dial."""

    dial: str
    than: str | float = 0

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Tell whether it holds for the values decided so far."""
        than = values[self.than] if isinstance(self.than, str) else self.than
        return bool(values[self.dial] > than)

    def given(self, held: Mapping[str, Any]) -> "Condition | bool":
        """Return what is left of it where these dials never change."""
        than = held.get(self.than, self.than) if isinstance(self.than, str) else self.than
        if self.dial in held and not isinstance(than, str):
            return bool(held[self.dial] > than)
        if held.get(self.dial, 1) <= 0:  # what another dial must be below, and none is negative
            return False
        return When(dial=self.dial, than=than)

    def __str__(self) -> str:
        return f"{self.dial} > {self.than}"


@dataclass(frozen=True, kw_only=True)
class Is:
    """A dial with named values has one of these."""

    dial: str
    among: tuple[str, ...]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Tell whether it holds for the values decided so far."""
        return values[self.dial] in self.among

    def given(self, held: Mapping[str, Any]) -> "Condition | bool":
        """Return what is left of it where these dials never change."""
        return held[self.dial] in self.among if self.dial in held else self

    def __str__(self) -> str:
        return f"{self.dial} is {' or '.join(self.among)}"


@dataclass(frozen=True, kw_only=True)
class AllOf:
    """All of these hold."""

    parts: "tuple[Condition, ...]"

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Tell whether it holds for the values decided so far."""
        return all(part.holds(values) for part in self.parts)

    def given(self, held: Mapping[str, Any]) -> "Condition | bool":
        """Return what is left of it where these dials never change."""
        parts = [part.given(held) for part in self.parts]
        if False in parts:
            return False
        left = tuple(part for part in parts if not isinstance(part, bool))
        return AllOf(parts=left) if len(left) > 1 else left[0] if left else True

    def __str__(self) -> str:
        return " and ".join(map(str, self.parts))


@dataclass(frozen=True, kw_only=True)
class AnyOf:
    """At least one of these holds."""

    parts: "tuple[Condition, ...]"

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Tell whether it holds for the values decided so far."""
        return any(part.holds(values) for part in self.parts)

    def given(self, held: Mapping[str, Any]) -> "Condition | bool":
        """Return what is left of it where these dials never change."""
        parts = [part.given(held) for part in self.parts]
        if True in parts:
            return True
        left = tuple(part for part in parts if not isinstance(part, bool))
        return AnyOf(parts=left) if len(left) > 1 else left[0] if left else False

    def __str__(self) -> str:
        return ", or ".join(map(str, self.parts))


Condition = When | Is | AllOf | AnyOf

_REPLACED: Final = Is(dial="source_head", among=("replace",))
_L2SP: Final = When(dial="n_l2sp", than="frozen_layers")
_DELTA: Final = Is(dial="delta", among=("plain", "attention"))
_DISTILL: Final = When(dial="distill")

PULLED: Final = AnyOf(parts=(AllOf(parts=(_L2SP, When(dial="alpha"))), _DELTA, _DISTILL))
"""Something pulls to the source, which DTNH can project."""

CONDITIONS: Final[Mapping[str, Condition]] = {
    "head_start": _REPLACED,
    "reinit_layers": AllOf(parts=(_REPLACED, Is(dial="head_start", among=("random",)))),
    "lr_low_ratio": When(dial="n_low", than="frozen_layers"),
    "alpha": _L2SP,
    "delta_alpha": _DELTA,
    "distill_temperature": _DISTILL,
    "dtnh": PULLED,
    "decay_factor": When(dial="decay_updates"),
}


def idle(dials: Dials) -> tuple[str, ...]:
    """Name the dials that have no effect beside the others, in the order they are decided.

    Beside those under a condition these are counts of blocks that are all frozen.
    """
    usual, values = dict(Dials()), dict(dials)
    found = []
    for name in ORDER:
        condition = CONDITIONS.get(name)
        counts = name in {"n_low", "n_l2sp"} and values[name] <= values["frozen_layers"]
        if counts or (condition is not None and not condition.holds(values)):
            found.append(name)
            values[name] = usual[name]
    return tuple(found)


def effective(dials: Dials) -> Dials:
    """Return the dials with those that have no effect at their defaults.

    The low rate's ratio has none without low blocks, for example, nor has alpha without L2-SP
    blocks, nor a block count without blocks that learn (`idle`).
    """
    usual = dict(Dials())
    return Dials.parse({**dict(dials), **{name: usual[name] for name in idle(dials)}})
