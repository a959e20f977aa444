"""The non-binary search space, as data."""

from nbtl_search.space.changes import SPACES, build, build_for
from nbtl_search.space.conditions import CONDITIONS, AllOf, AnyOf, Condition, Is, When, idle
from nbtl_search.space.domains import Choice, Domain, Float, Int, Suggests, in_words
from nbtl_search.space.points import (
    design,
    dials_of,
    outside,
    params_of,
    suggest,
    suggest_row,
)
from nbtl_search.space.possible import impossible
from nbtl_search.space.priors import MAX_WEIGHT, value_at
from nbtl_search.space.recipes import known_dials
from nbtl_search.space.rows import Limit, Space, SpaceRow

__all__ = [
    "CONDITIONS",
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
    "Space",
    "SpaceRow",
    "Suggests",
    "When",
    "build",
    "build_for",
    "design",
    "dials_of",
    "idle",
    "impossible",
    "in_words",
    "known_dials",
    "outside",
    "params_of",
    "suggest",
    "suggest_row",
    "value_at",
]
