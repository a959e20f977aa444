"""The embedded database on a network address: chosen, kept, closed again."""

import json
import socket
import stat

import psutil
import pytest
from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from nbtl_search.errors import StorageError
from nbtl_search.ledger import database
from nbtl_search.postgres import address, server
from nbtl_search.postgres.data_folder import Files

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def on_loopback(port, **options):
    defaults = {"allow": None, "any_interface": False}
    return address.choose("127.0.0.1", port=port, **defaults | options)


def answer(url, statement="SELECT 42"):
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        return connection.execute(text(statement)).scalar()


def addresses(home):
    """The network addresses that the server listens on."""
    process = psutil.Process(server.status(home).pid)
    return {(c.laddr.ip, c.laddr.port) for c in process.net_connections("tcp")}


@pytest.fixture
def home(public_folder):
    path = public_folder / "served"
    yield path
    server.stop(path)
    address.forget(Files.below(path))


def test_it_listens_where_it_was_told_and_workers_find_the_file(home):
    port = free_port()
    assert server.served(home) is None
    file = server.serve(home, on_loopback(port))
    assert file == server.served(home)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    url = database.parse_url(file.read_text())
    assert (url.host, url.port) == ("127.0.0.1", port)
    assert answer(url) == 42
    assert addresses(home) == {("127.0.0.1", port)}
    assert f"127.0.0.1:{port}" in str(server.status(home).serves)


def test_the_socket_stays_where_it_was(home):
    url = server.start(home)
    engine = create_engine(url, pool_pre_ping=True)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    server.serve(home, on_loopback(free_port()))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 2")).scalar() == 2
    server.serve(home, None)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 3")).scalar() == 3
    engine.dispose()


def test_whoever_starts_it_next_serves_it_again(home):
    port = free_port()
    file = server.serve(home, on_loopback(port))
    server.stop(home)
    server.start(home)
    assert addresses(home) == {("127.0.0.1", port)}
    assert answer(database.parse_url(file.read_text())) == 42


def test_off_closes_it(home):
    port = free_port()
    file = server.serve(home, on_loopback(port))
    url = database.parse_url(file.read_text())
    assert server.serve(home, None) is None
    assert server.served(home) is None
    assert not file.exists()
    assert addresses(home) == set()
    with pytest.raises(OperationalError, match="refused"):
        answer(url)


def test_the_password_is_asked_for(home):
    url = database.parse_url(server.serve(home, on_loopback(free_port())).read_text())
    with pytest.raises(OperationalError, match="password authentication failed"):
        answer(url.set(password="guess"))
    with pytest.raises(OperationalError, match="no password supplied"):
        answer(URL.create(url.drivername, url.username, None, url.host, url.port, url.database))


def test_only_the_network_named_may_connect(home):
    file = server.serve(home, on_loopback(free_port(), allow="10.9.8.0/24"))
    with pytest.raises(OperationalError, match=r"no pg_hba\.conf entry"):
        answer(database.parse_url(file.read_text()))


def test_a_taken_port_is_refused_and_all_is_as_before(home):
    server.start(home)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StorageError, match=rf"port {port}.*in use"):
            server.serve(home, on_loopback(port))
    assert server.served(home) is None
    assert addresses(home) == set()


@pytest.mark.parametrize(
    ("host", "options", "says"),
    [
        ("0.0.0.0", {}, "--any-interface"),  # noqa: S104
        ("::", {}, "--any-interface"),
        ("127.0.0.1", {"allow": "everybody"}, "--allow"),
        ("127.0.0.1", {"allow": "10.0.0.1/8"}, "host bits"),
    ],
)
def test_what_cannot_be_meant_is_refused(host, options, says):
    with pytest.raises(StorageError, match=says):
        address.choose(host, port=5433, **{"allow": None, "any_interface": False} | options)


def test_an_address_of_another_machine_is_refused(home):
    wanted = address.choose("192.0.2.1", port=5433, allow=None, any_interface=False)
    with pytest.raises(StorageError, match="an address of this machine"):
        server.serve(home, wanted)
    assert server.served(home) is None


def test_a_hostile_host_cannot_add_settings(home):
    wanted = address.choose("127.0.0.1'\nfsync = off\n'", port=1, allow=None, any_interface=False)
    with pytest.raises(StorageError, match="must be able to listen"):
        server.serve(home, wanted)


def test_a_damaged_note_is_named(home):
    server.serve(home, on_loopback(free_port()))
    note = Files.below(home).root / "serve.json"
    note.write_text(json.dumps({"host": "127.0.0.1", "prot": 1}))
    with pytest.raises(StorageError, match=r"serve\.json"):
        server.served(home)
