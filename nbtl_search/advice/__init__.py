"""What a diagnosis and earlier studies say about the next search. Pure: no torch, no database."""

from nbtl_search.advice.recipes import MEMORY_PART, TABLE7_PART, advise, prior, table7
from nbtl_search.advice.regime import WARNING, Conclusion, conclude
from nbtl_search.advice.remembered import (
    Distance,
    Remembered,
    RememberedRecipe,
    closeness,
    ranked,
)

__all__ = [
    "MEMORY_PART",
    "TABLE7_PART",
    "WARNING",
    "Conclusion",
    "Distance",
    "Remembered",
    "RememberedRecipe",
    "advise",
    "closeness",
    "conclude",
    "prior",
    "ranked",
    "table7",
]
