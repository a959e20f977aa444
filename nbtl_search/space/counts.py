"""Counts of blocks that hold for any network: 'all', and fractions such as '14/22'."""

from fractions import Fraction
from typing import Final

from nbtl_search.errors import SpecError
from nbtl_search.spec import SettingValue

COUNTS: Final = frozenset({"n_low", "n_l2sp", "reinit_layers", "frozen_layers"})


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
