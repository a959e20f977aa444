"""Arrays on disk in parts, each checked: work that was killed goes on at the first missing part.

A part is `np.save`'s bytes followed by their sha256.
"""

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nbtl_search.files.atomic import write_durably

_FOOTER_BYTES: Final = hashlib.sha256().digest_size


def write(path: Path, array: NDArray[Any]) -> None:
    """Write an array whole or not at all.

    Raises:
        OSError: the disk is full or not writable.
    """
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    payload = content.getbuffer()
    write_durably(path, payload, hashlib.sha256(payload).digest())


def read(path: Path, *, n: int) -> NDArray[np.float32] | None:
    """Return a part of n finite or infinite float32 rows; None where it is missing or damaged.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    payload, footer = content[:-_FOOTER_BYTES], bytes(content[-_FOOTER_BYTES:])
    if footer != hashlib.sha256(payload).digest():
        return None
    array: NDArray[Any] | None = None
    with contextlib.suppress(ValueError, EOFError):
        array = np.load(io.BytesIO(payload), allow_pickle=False)
    if array is None or array.ndim != 2 or len(array) != n or array.dtype != np.float32:
        return None
    return array
