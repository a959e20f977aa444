"""What a diagnosis and earlier studies say about the next search. Pure: no torch, no database."""

from nbtl_search.advice.advising import MEMORY_PART, TABLE7_PART, advise
from nbtl_search.advice.portfolio import (
    Distance,
    Remembered,
    RememberedRecipe,
    closeness,
    ranked,
)
from nbtl_search.advice.recipes import prior, table7
from nbtl_search.advice.regime import WARNING, Conclusion, conclude

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
