"""Who else is on the machine cannot get into the embedded database.

Each test first shows, with the same program, that what it forbids is possible otherwise.
"""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import nbtl_search
from nbtl_search.errors import StorageError
from nbtl_search.ledger import database
from nbtl_search.postgres import data_folder, os_user, server
from nbtl_search.postgres.data_folder import Files

pytestmark = pytest.mark.postgres
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: another local user must be impersonated"
)

# Everything is imported before the user changes: the interpreter may lie where only root reads.
CONNECT = """
import json, os, sys
import psycopg2, encodings.idna
asked = json.load(sys.stdin)
uid = asked.pop("uid")
if uid:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
assert os.geteuid() == uid
try:
    psycopg2.connect(user="nbtl", dbname="postgres", port=5432, connect_timeout=5, **asked).close()
except psycopg2.OperationalError as error:
    print(" ".join(str(error).split()))
else:
    print("connected")
"""

OPEN = """
import json, os, sys
asked = json.load(sys.stdin)
if asked["uid"]:
    os.setgroups([]); os.setgid(asked["uid"]); os.setuid(asked["uid"])
readable = []
for path in asked["paths"]:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").close()
        readable.append(path)
    except OSError:
        pass
print(json.dumps(readable))
"""

USE_AS_ORDINARY_USER = """
import json, os, sys
from pathlib import Path
import psycopg2, encodings.idna, encodings.ascii, sqlalchemy.dialects.postgresql.psycopg2
from sqlalchemy import create_engine, text
from nbtl_search.postgres import server
asked = json.load(sys.stdin)
os.setgroups([]); os.setgid(asked["gid"]); os.setuid(asked["uid"])
home = Path(asked["home"])
url = server.start(home)
engine = create_engine(url)
with engine.connect() as connection:
    print(connection.execute(text("SELECT 1")).scalar())
engine.dispose()
print(os.stat(home / "postgres" / "data").st_uid, server.stop(home))
"""


def run(program, **asked):
    """Run a program in a process of its own; secrets go to it by stdin."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(nbtl_search.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def nobody():
    return pwd.getpwnam("nobody").pw_uid


@pytest.fixture(params=["short", "long"])
def home(request, stopped):
    """A home whose folders, down to the database's own, let everybody pass."""
    top = Path(tempfile.mkdtemp(prefix="nbtl-test-", dir="/tmp"))
    top.chmod(0o755)
    path = top.joinpath(*["x" * 60] * (3 if request.param == "long" else 0), "home")
    path.mkdir(parents=True)
    if "no_process" not in request.node.name:  # that one watches the database being made
        subprocess.run(["cp", "-a", stopped / "postgres", path], check=True)
    yield path
    server.stop(path)
    shutil.rmtree(top)


@needs_root
def test_another_user_cannot_connect_even_with_the_password(home, nobody):
    url = server.start(home)
    right = {"host": url.query["host"], "password": url.password}
    assert run(CONNECT, uid=0, **right) == "connected"
    assert "Permission denied" in run(CONNECT, uid=nobody, **right)


@needs_root
def test_if_the_folder_were_open_the_password_would_still_be_needed(home, nobody):
    url = server.start(home)
    folder = Path(str(url.query["host"]))
    (folder / ".s.PGSQL.5432").chmod(0o777)
    for opened in (folder, folder.parent):
        if opened != Path("/tmp"):  # noqa: S108
            opened.chmod(0o755)
    where = {"uid": nobody, "host": str(folder)}
    assert run(CONNECT, **where, password=url.password) == "connected"
    assert "authentication failed" in run(CONNECT, **where, password="guess")
    assert "no password supplied" in run(CONNECT, **where)


@needs_root
def test_another_user_cannot_read_the_password_the_data_or_the_log(home, nobody):
    server.start(home)
    files = Files.below(home)
    private = [files.password, files.data, files.log, files.socket, files.root, files.lock]
    private += [files.data / "global", files.data / "base", files.root / "pg_hba.conf"]
    paths = [str(path) for path in private]
    assert json.loads(run(OPEN, uid=0, paths=paths)) == paths
    assert json.loads(run(OPEN, uid=nobody, paths=paths)) == []
    assert json.loads(run(OPEN, uid=nobody, paths=[str(home)])) == [str(home)]


@needs_root
def test_the_server_itself_cannot_change_what_guards_it(home):
    server.start(home)
    files = Files.below(home)
    user = os_user.of_server()
    assert user.name == "nbtl-postgres"
    for path in (files.root, files.root / "pg_hba.conf", files.root / "postgresql.conf"):
        assert path.stat().st_uid == 0
    assert json.loads(run(OPEN, uid=user.uid, paths=[str(files.password)])) == []


@needs_root
def test_closed_folders_above_stay_closed_to_everyone_else(tmp_path, nobody):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    home = closed / "home"
    database.connect(None, home=home).close()
    assert closed.stat().st_mode & 0o007 == 0
    assert json.loads(run(OPEN, uid=nobody, paths=[str(closed)])) == []
    user = os_user.of_server()
    assert json.loads(run(OPEN, uid=user.uid, paths=[str(closed)])) == [], "search only"
    server.stop(home)


@needs_root
def test_it_works_as_an_ordinary_user():
    # The one who may already pass to the installed programs, wherever root keeps them.
    user = os_user.of_server()
    os_user.let_through(user, data_folder.binary("initdb"))
    top = Path(tempfile.mkdtemp(prefix="nbtl-test-", dir="/tmp"))
    os.chown(top, user.uid, user.gid)
    try:
        out = run(USE_AS_ORDINARY_USER, uid=user.uid, gid=user.gid, home=str(top / "home"))
    finally:
        shutil.rmtree(top)
    assert out.split() == ["1", str(user.uid), "True"]


@pytest.mark.parametrize("home", ["long"], indirect=True)
@pytest.mark.parametrize("trap", ["open", "link", "file"])
def test_a_squatter_on_the_short_socket_folder_is_noticed(home, tmp_path, trap):
    folder = Files.below(home).socket
    assert folder.parent == Path("/tmp")  # noqa: S108
    if trap == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif trap == "link":
        folder.symlink_to(tmp_path)
    else:
        folder.write_text("")
    with pytest.raises(StorageError, match="must be a private folder"):
        server.start(home)
    if folder.is_dir() and not folder.is_symlink():
        folder.rmdir()
    else:
        folder.unlink()


@needs_root
@pytest.mark.parametrize("home", ["long"], indirect=True)
def test_a_short_socket_folder_of_another_user_is_noticed(home, nobody):
    server.start(home)
    folder = Files.below(home).socket
    os.chown(folder, nobody, -1)
    with pytest.raises(StorageError, match="must be a private folder"):
        server.start(home)
    os.chown(folder, os_user.of_server().uid, -1)


@pytest.mark.parametrize("home", ["short", "long"], indirect=True)
def test_the_socket_has_an_address_however_long_the_home(home):
    url = server.start(home)
    address = f"{url.query['host']}/.s.PGSQL.5432"
    assert len(os.fsencode(address)) <= 107
    assert Path(address).is_socket()
    assert Path(address).parent.stat().st_mode & 0o077 == 0
    server.stop(home)
    assert not Path(address).parent.exists() or Path(address).parent.parent == home / "postgres"


def test_a_server_of_another_user_is_not_trusted(home):
    """libpq hangs up on a server that runs as somebody else, before any authentication."""
    url = server.start(home).update_query_dict({"requirepeer": "somebody-else"})
    with pytest.raises(StorageError, match="requirepeer"):
        database.connect(url.render_as_string(hide_password=False), home=home)


class Watch:
    """Collects the arguments and environments of all processes, for as long as it runs."""

    def __init__(self):
        self.seen = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_often)

    def _look_often(self):
        while not self._over.is_set():
            for kind in ("cmdline", "environ"):
                for path in Path("/proc").glob(f"[0-9]*/{kind}"):
                    try:
                        self.seen.add(path.read_bytes())
                    except OSError:
                        continue

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def has(self, word):
        return any(word.encode() in text for text in self.seen)


def test_no_process_and_no_file_but_its_own_shows_the_password(home):
    with Watch() as watch:
        opened = database.connect(None, home=home)
        database.create_or_upgrade(opened)
        with pytest.raises(StorageError):
            database.connect(
                opened.url.set(password="guess").render_as_string(hide_password=False), home=home
            )
        opened.close()
        subprocess.run(["true", "a-word-that-shows"], check=True)
        with subprocess.Popen(["sleep", "0.7071"]) as visible:
            visible.wait()
    files = Files.below(home)
    secret = data_folder.read_password(files).encode()
    holders = [path for path in home.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert holders == [files.password]
    assert files.password.stat().st_mode & 0o777 == 0o600
    assert watch.has("0.7071"), "the watch sees arguments"
    assert watch.has("initdb"), "the watch saw the database being made"
    assert not watch.has(secret.decode())
