"""A search space: the rows that are searched, and what is held or limited."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nbtl_search.space.conditions import CONDITIONS, ORDER, Condition
from nbtl_search.space.counts import count_of
from nbtl_search.space.domains import Domain
from nbtl_search.spec import SettingValue


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
