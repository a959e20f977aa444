"""Advice of a diagnosis and of earlier studies for the next search: no torch, no database."""

from nbtl_search.advice.recipes import TABLE7_PART, WARM_START_PART, advise, prior, table7
from nbtl_search.advice.regime import WARNING, Conclusion, conclude
from nbtl_search.advice.warm_start import (
    Distance,
    EarlierRecipe,
    EarlierStudy,
    closeness,
    ranked,
)

__all__ = [
    "TABLE7_PART",
    "WARM_START_PART",
    "WARNING",
    "Conclusion",
    "Distance",
    "EarlierRecipe",
    "EarlierStudy",
    "advise",
    "closeness",
    "conclude",
    "prior",
    "ranked",
    "table7",
]
