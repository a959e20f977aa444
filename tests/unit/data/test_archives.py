import functools
import hashlib
import http.server
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbtl_search.data.official import Archive, fetch
from nbtl_search.errors import DataError


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """A server of this folder."""
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(tmp_path: Path, site: str) -> Archive:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "train1.txt").write_text("a/1.jpg\n")
    path = tmp_path / "site.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "labels", arcname="dtd/labels")
    return described(path, site)


def described(path: Path, site: str) -> Archive:
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return Archive(url=f"{site}/{path.name}", md5=md5, n_bytes=1000)


def test_archive_is_fetched_and_extracted(archive, tmp_path):
    target = fetch(archive, tmp_path / "home" / "dtd")
    assert (target / "dtd" / "labels" / "train1.txt").read_text() == "a/1.jpg\n"
    assert [path.name for path in target.iterdir()] == ["dtd"]


@pytest.mark.parametrize("change", [{"md5": "0" * 32}, {"url": "http://127.0.0.1:9/none.tar.gz"}])
def test_failed_download_is_one_line_and_leaves_nothing(archive, tmp_path, change):
    target = tmp_path / "home" / "dtd"
    broken = Archive(**(vars(archive) | change))
    with pytest.raises(DataError, match=f"fetch it elsewhere, extract it into {target}") as e:
        fetch(broken, target)
    assert "\n" not in str(e.value)
    assert broken.url in str(e.value)
    assert not [path for path in target.parent.iterdir() if path.is_dir()]


def test_archive_that_writes_outside_is_refused(tmp_path, site):
    path = tmp_path / "evil.tar"
    (tmp_path / "x").write_text("x")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "x", arcname="../../escaped")
    with pytest.raises(DataError, match="outside"):
        fetch(described(path, site), tmp_path / "home" / "dtd")
    assert not list(tmp_path.rglob("escaped"))
