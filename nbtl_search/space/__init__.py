"""The non-binary search space, as data."""

from nbtl_search.space.conditions import (
    CONDITIONS,
    AllOf,
    AnyOf,
    Condition,
    Is,
    When,
    effective,
    idle,
)
from nbtl_search.space.groups import GROUPS, Removal, removals
from nbtl_search.space.named import SPACES, build, build_for
from nbtl_search.space.points import (
    design,
    dials_of,
    dials_outside,
    known_dials,
    outside,
    params_of,
    suggest,
    suggest_row,
)
from nbtl_search.space.priors import MAX_WEIGHT, value_at
from nbtl_search.space.rows import (
    Choice,
    Domain,
    Float,
    Int,
    Limit,
    Space,
    SpaceRow,
    Suggests,
    describe,
    impossible,
)

__all__ = [
    "CONDITIONS",
    "GROUPS",
    "MAX_WEIGHT",
    "SPACES",
    "AllOf",
    "AnyOf",
    "Choice",
    "Condition",
    "Domain",
    "Float",
    "Int",
    "Is",
    "Limit",
    "Removal",
    "Space",
    "SpaceRow",
    "Suggests",
    "When",
    "build",
    "build_for",
    "describe",
    "design",
    "dials_of",
    "dials_outside",
    "effective",
    "idle",
    "impossible",
    "known_dials",
    "outside",
    "params_of",
    "removals",
    "suggest",
    "suggest_row",
    "value_at",
]
