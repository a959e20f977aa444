"""No container runs here: what the containers run is run on this machine, as the files say it."""

import base64
import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from nbtl_search.postgres import data_folder
from tests.acceptance.conftest import check_invariants, free_port, wait_until

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
PROXY = ROOT / "workers" / "proxy"

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def command_of(service, **changed):
    """The service's command, with the values that a container's network would make unnecessary."""
    words = [re.sub(r"\$\{NBTL_STUDY:-dtd\}", "tiny", str(word)) for word in service["command"]]
    return [changed.get(word, word) for word in words]


@pytest.fixture
def secret(program):
    """The database's address in a file, as the secret `storage_url` is one."""
    opened = program.open()
    file = program.home / "secret_storage_url"
    file.touch(mode=0o600)
    file.write_text(opened.url.render_as_string(hide_password=False))
    yield file
    opened.close()


def start(program, secret, words):
    return subprocess.Popen(
        [sys.executable, "-m", "nbtl_search.cli", *words],
        env=program.environment | {"NBTL_STORAGE_FILE": str(secret)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def probe_of_the_image():
    """The HEALTHCHECK of the Dockerfile."""
    text = (ROOT / "workers" / "Dockerfile").read_text("utf-8")
    found = re.search(r"HEALTHCHECK .*?CMD (\[.*?\])$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    words = yaml.safe_load(found[1])
    return [sys.executable, *words[1:]]


@pytest.mark.timeout(300)
def test_schema_job_and_worker_run_to_their_end_and_no_password_is_seen(program, secret, tiny):
    schema = start(program, secret, command_of(SERVICES["schema"]))
    _, complaints = schema.communicate(timeout=60)
    assert schema.returncode == 0, complaints
    program.ok(*tiny, "--epochs", 3, "--trials", 3)
    port = str(free_port())
    password = program.open().url.password
    seen: set[str] = set()
    done = threading.Event()

    def watch():
        while not done.is_set():
            for process in psutil.process_iter(["cmdline"]):
                seen.add(" ".join(process.info["cmdline"] or []))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        words = command_of(SERVICES["worker-cpu"], **{"9464": port})
        worker = start(program, secret, words)
        probe = [word.replace("9464", port) for word in probe_of_the_image()]
        wait_until(lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0)
        output, errors = worker.communicate(timeout=200)
    finally:
        done.set()
        watcher.join()
    assert worker.returncode == 0, errors
    assert subprocess.run(probe, capture_output=True, check=False).returncode != 0, "it is gone"
    assert any("trainer" in line for line in seen), "nothing was watched"
    assert not [line for line in [*seen, output, errors] if password in line]
    check_invariants(program, "tiny", n_trials=3)


def test_postgres_takes_every_setting_of_the_service(tmp_path):
    flags = SERVICES["postgres"]["command"][1:]
    settings = dict(flag.split("=") for flag in flags if flag != "-c")
    data = tmp_path / "data"
    data.mkdir()
    (data / "postgresql.conf").write_text("")
    for name, value in settings.items():
        done = subprocess.run(
            [data_folder.binary("postgres"), "-D", data, *flags, "-C", name],
            capture_output=True, text=True, check=False, **_not_as_root(tmp_path),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in {value, "300000", "5min"}


def _not_as_root(folder):
    """Postgres refuses to be root, also where it only reads its settings."""
    if os.geteuid() != 0:
        return {}
    from nbtl_search.postgres import os_user

    owner = os_user.of_server()
    os_user.let_through(owner, folder)
    os_user.let_through(owner, data_folder.binary("postgres"))
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.uid, owner.gid)
    return owner.identity()


# -- the dashboard behind its login -----------------------------------------------------------


def localised(folder, *, dashboard, port, server):
    """Write the very files of the proxy with this machine's paths and ports, not a container's."""
    hers = {
        "/tmp/": f"{folder}/",  # noqa: S108  (first: ours lie there too)
        "http://dashboard:8080": f"http://127.0.0.1:{dashboard}",
        "listen 8080": f"listen 127.0.0.1:{port}",
        "/etc/nginx/conf.d/": f"{folder}/",
        "/run/secrets/": f"{folder}/",
    }
    for name in ("nginx.conf", "dashboard.conf", server):
        text = (PROXY / name).read_text("utf-8")
        for theirs, ours in hers.items():
            text = text.replace(theirs, ours)
        (folder / ("server.conf" if name == server else name)).write_text(text)


@contextlib.contextmanager
def nginx(folder):
    process = subprocess.Popen(
        ["nginx", "-c", folder / "nginx.conf", "-e", "stderr", "-g", "daemon off; user root;"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def get(url, login=None, **options):
    request = urllib.request.Request(url)  # noqa: S310
    if login is not None:
        word = base64.b64encode(login.encode()).decode()
        request.add_header("Authorization", f"Basic {word}")
    try:
        with urllib.request.urlopen(request, timeout=10, **options) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture
def dashboard(program, secret, tiny):
    """The dashboard's command, on a port of its own."""
    program.ok(*tiny, "--epochs", 1, "--trials", 1)
    port = free_port()
    words = command_of(SERVICES["dashboard"], **{"8080": str(port), "0.0.0.0": "127.0.0.1"})  # noqa: S104
    process = start(program, secret, words)

    def answers():
        assert process.poll() is None, process.stderr.read()
        with contextlib.suppress(OSError):
            return get(f"http://127.0.0.1:{port}/")[0] == 200
        return False

    wait_until(answers)
    probe = [
        word.replace("8080", str(port)) for word in SERVICES["dashboard"]["healthcheck"]["test"]
    ]
    assert subprocess.run([sys.executable, *probe[2:]], check=False).returncode == 0
    yield port
    process.terminate()
    process.communicate(timeout=20)


@pytest.fixture
def behind(dashboard, tmp_path):
    """Everything of the proxy but its server."""
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input="right", capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    (tmp_path / "dashboard_htpasswd").write_text(f"lab:{hashed}")
    return dashboard, tmp_path


@pytest.mark.nginx
@pytest.mark.timeout(200)
def test_without_the_login_nothing_of_the_dashboard_is_seen(behind):
    dashboard, folder = behind
    port = free_port()
    localised(folder, dashboard=dashboard, port=port, server="server.conf")
    base = f"http://127.0.0.1:{port}"
    with nginx(folder) as proxy:
        wait_until(lambda: proxy.poll() is not None or _listens(port))
        assert proxy.poll() is None, proxy.stderr.read()
        for path in (
            "/",
            "/dashboard/",
            "/api/studies",
            "/static/bundle.js",
            "/static/%2e%2e/api/studies",
        ):
            assert get(base + path)[0] == 401, path
            assert get(base + path, "lab:wrong")[0] == 401, path
        # Above the root nginx refuses by itself, whoever asks.
        code, content = get(base + "/%2e%2e/api/studies")
        assert code == 400
        assert b"tiny" not in content
        code, content = get(base + "/api/studies", "lab:right")
        assert code == 200
        assert b"tiny" in content


@pytest.mark.nginx
@pytest.mark.timeout(200)
def test_with_a_certificate_it_speaks_tls(behind):
    import ssl

    dashboard, folder = behind
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", folder / "tls_key", "-out", folder / "tls_certificate",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    localised(folder, dashboard=dashboard, port=port, server="tls.conf")
    trusting = ssl.create_default_context(cafile=str(folder / "tls_certificate"))
    with nginx(folder) as proxy:
        wait_until(lambda: proxy.poll() is not None or _listens(port))
        assert proxy.poll() is None, proxy.stderr.read()
        url = f"https://127.0.0.1:{port}/api/studies"
        assert get(url, context=trusting)[0] == 401
        assert get(url, "lab:right", context=trusting)[0] == 200


def _listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
