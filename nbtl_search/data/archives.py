"""Datasets fetched from their own sites: verified by checksum, extracted with path checks."""

import http.client
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.utils import download_url

from nbtl_search.data.publish import publish
from nbtl_search.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A tar archive on the network."""

    url: str
    md5: str
    n_bytes: int
    """Space for the archive and what is in it, both at once."""


def fetch(archive: Archive, target: Path) -> Path:
    """Make `target` hold the content of the archive; a broken download leaves nothing.

    Raises:
        DataError: it cannot be had; the message says what to fetch and where to put it.
    """

    def fill(temporary: Path) -> None:
        name = archive.url.rpartition("/")[2]
        try:
            download_url(archive.url, str(temporary), filename=name, md5=archive.md5)
            shutil.unpack_archive(temporary / name, temporary, filter="data")
        except (
            OSError,
            RuntimeError,
            http.client.HTTPException,
            tarfile.TarError,
            shutil.ReadError,
        ) as error:
            message = (
                f"{archive.url} must be reachable and whole (md5 {archive.md5}), got {error}; "
                f"fetch it elsewhere, extract it into {target}, and try again"
            )
            raise DataError(message) from error
        (temporary / name).unlink()

    return publish(target, fill, n_bytes=archive.n_bytes)
