"""Log files that do not grow for ever: the old ones are kept beside them, a few of each."""

from pathlib import Path
from typing import Final

MAX_BYTES: Final = 8_000_000
N_KEPT: Final = 3


def rotate(log: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Move a log that has grown too large to `NAME.1`, and the older ones one further.

    Whoever has it open writes on into what is `NAME.1` then; call this before opening it.
    """
    try:
        if log.stat().st_size <= max_bytes:
            return
        for number in range(N_KEPT, 0, -1):
            older = _numbered(log, number - 1)
            if older.exists():
                older.replace(_numbered(log, number))
    except FileNotFoundError:  # there is none yet, or another process was quicker
        return


def _numbered(log: Path, number: int) -> Path:
    return log if number == 0 else log.with_name(f"{log.name}.{number}")
