"""Survey of a dataset: every image read once for soundness, size and the content's digest.

The result is kept under a fingerprint of the names, sizes and times of the files, so that opening
a prepared dataset does not read them again.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from nbtl_search.data.images import UNREADABLE
from nbtl_search.data.splits import SPLITS, Item, Manifest
from nbtl_search.errors import DataError
from nbtl_search.files.shared_folder import publish
from nbtl_search.spec import Progress

logger = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found in the images of a manifest."""

    digest: str
    sizes: dict[str, tuple[int, int]]
    """Height and width of each sound image, by key."""
    skipped: dict[str, str]
    """Why an image was left out, by key."""


def fingerprint(manifest: Manifest) -> str:
    """Return a digest of names, labels and splits and of the size and time of every file.

    Raises:
        DataError: files of the manifest are not there.
    """
    missing, lines = [], [repr(manifest.textures)]
    for split in SPLITS:
        for item in manifest.items(split):
            try:
                lines.append(f"{_line(manifest, split, item)}|{_stamp(item)}")
            except OSError:
                missing.append(str(item.path))
    if missing:
        message = (
            f"every listed image of {manifest.name} is on disk, got {len(missing)} that are not, "
            f"first {missing[0]!r}; complete the dataset, or fetch it again"
        )
        raise DataError(message)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_survey(manifest: Manifest, *, directory: Path) -> Survey | None:
    """Return the survey made before of these very files, or None.

    Raises:
        DataError: files of the manifest are not there.
    """
    return _load(directory / fingerprint(manifest))


def survey(
    manifest: Manifest, *, directory: Path, skip_corrupt: bool, progress: Progress | None = None
) -> Survey:
    """Return the survey of these images, made now or before.

    A survey made with `skip_corrupt` stands until the files change.

    Raises:
        DataError: images are missing, or damaged and not to be skipped.
    """
    target = directory / fingerprint(manifest)
    found = _load(target)
    if found is not None:
        return found

    def fill(temporary: Path) -> None:
        made = _examine_all(manifest, skip_corrupt=skip_corrupt, progress=progress)
        (temporary / "survey.json").write_text(json.dumps(asdict(made)), encoding="utf-8")

    publish(target, fill, n_bytes=400 * sum(len(manifest.items(split)) for split in SPLITS))
    made = _load(target)
    if made is None:
        message = f"{target} must hold a survey, got none; remove this folder and prepare again"
        raise DataError(message)
    return made


def _load(target: Path) -> Survey | None:
    try:
        plain = json.loads((target / "survey.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sizes = {key: (height, width) for key, (height, width) in plain["sizes"].items()}
    return Survey(digest=plain["digest"], sizes=sizes, skipped=plain["skipped"])


def _line(manifest: Manifest, split: str, item: Item) -> str:
    return json.dumps([split, manifest.classes[item.label], item.label, item.key])


def _stamp(item: Item) -> str:
    if item.path is None:
        return ""
    status = item.path.stat()
    return f"{item.path.absolute()}|{status.st_size}|{status.st_mtime_ns}"


@dataclass(frozen=True, kw_only=True)
class _Seen:
    content: str
    size: tuple[int, int] | None
    reason: str = ""


def _examine_all(manifest: Manifest, *, skip_corrupt: bool, progress: Progress | None) -> Survey:
    listed = [(split, item) for split in SPLITS for item in manifest.items(split)]
    total = hashlib.sha256()
    sizes, skipped = {}, {}
    seen = in_threads(lambda entry: _examine(manifest, entry[1]), listed)
    for n, ((split, item), one) in enumerate(zip(listed, seen, strict=True), start=1):
        if one.size is None:
            skipped[item.key] = one.reason
        else:
            sizes[item.key] = one.size
            total.update(f"{_line(manifest, split, item)}|{one.content}\n".encode())
        if progress is not None:
            progress(n, len(listed))
    if skipped and not skip_corrupt:
        raise DataError(_damaged(manifest, skipped))
    if skipped:
        logger.warning("skipped %d damaged images", len(skipped), extra={"action": "prepare"})
    return Survey(digest=total.hexdigest(), sizes=sizes, skipped=skipped)


def _damaged(manifest: Manifest, skipped: dict[str, str]) -> str:
    paths = {item.key: item.path for split in SPLITS for item in manifest.items(split)}
    shown = ", ".join(f"{paths[key]} ({reason})" for key, reason in list(skipped.items())[:5])
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return (
        f"every image can be decoded, got {len(skipped)} that cannot: {shown}{more}; "
        "mend or remove them, or prepare with --skip-corrupt to leave them out"
    )


def _examine(manifest: Manifest, item: Item) -> _Seen:
    if item.path is None:
        if manifest.textures is None:
            message = f"an image without a path is rendered, got {item.key!r} and no textures"
            raise DataError(message)
        side = manifest.textures.size_px
        return _Seen(content=repr(manifest.textures), size=(side, side))
    try:
        content = item.path.read_bytes()
        return _Seen(content=hashlib.sha256(content).hexdigest(), size=_sound_size(content))
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return _Seen(content="", size=None, reason=reason[:200])


def _sound_size(content: bytes) -> tuple[int, int]:
    """Return height and width after decoding; JPEG at an eighth: quicker, as strict on damage."""
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        image.draft("RGB", (width // 8, height // 8))
        image.load()
    return height, width


def in_threads(function: Callable[[In], Out], items: Sequence[In]) -> Iterator[Out]:
    """Yield function(item) in order; Pillow and sha256 let go of the GIL, so threads are enough.

    At most 64 results wait at once, so a long dataset does not fill the memory.
    """
    n_threads = min(8, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 4
    with ThreadPoolExecutor(n_threads) as pool:
        for start in range(0, len(items), 64):
            yield from pool.map(function, items[start : start + 64])
