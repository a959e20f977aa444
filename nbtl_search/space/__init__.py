"""The non-binary search space, as data."""

from nbtl_search.space.domains import Choice, Domain, Float, Int, Suggests, in_words
from nbtl_search.space.named import SPACES, Space, SpaceRow, When, build
from nbtl_search.space.points import design, known_dials, outside, params_of, suggest, suggest_row
from nbtl_search.space.priors import MAX_WEIGHT, value_at

__all__ = [
    "MAX_WEIGHT",
    "SPACES",
    "Choice",
    "Domain",
    "Float",
    "Int",
    "Space",
    "SpaceRow",
    "Suggests",
    "When",
    "build",
    "design",
    "in_words",
    "known_dials",
    "outside",
    "params_of",
    "suggest",
    "suggest_row",
    "value_at",
]
