from io import BytesIO

import pytest

from nbtl_search.reports.dashboard.guard import Guard, names_of

READ = ["GET", "HEAD"]
WRITE = ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", ""]
PAGES = [
    *("/", "/favicon.ico", "/static/bundle.js", "/dashboard", "/dashboard/studies/1/trials"),
    *("/api/meta", "/api/studies", "/api/studies/1", "/api/studies/1/param_importances"),
    *("/api/studies/1/plot/contour", "/csv/1", "/learning-curve/12.svg"),
]
CLOSED = [
    *("/incompatible-rdb-schema", "/artifacts/1/2", "/api/artifacts/1", "/api/llm/x"),
    *("/api/studies/1/note", "/api/trials/1/tell", "/static/../x", "/static/a/b", "/csv/1/2"),
    *("/nothing", "//", "/api/studies/x", "/learning-curve/12", "/dashboard/\n"),
]


class Inner:
    """An application that notes what reaches it."""

    def __init__(self):
        self.seen = []

    def __call__(self, environ, start_response):
        self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        assert environ["HTTP_ACCEPT_ENCODING"] == "identity"  # the dashboard fails without any
        start_response(
            "200 OK", [("Content-Security-Policy", "default-src 'self'"), ("Server", "x")]
        )
        return [b"inner"]


@pytest.fixture
def ask():
    def ask(method, path, *, host="localhost:8080", writable=False, body=b"", **environ):
        inner, answers = Inner(), []
        guard = Guard(inner, hosts=names_of("127.0.0.1"), writable=writable)

        def start(status, headers, *_):
            answers.append((status, headers))
            return inner.seen.append

        request = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "HTTP_HOST": host,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": BytesIO(body),
        }
        text = b"".join(guard(request | environ, start))
        status, headers = answers[0]
        return int(status[:3]), dict(headers), text.decode(), inner.seen

    return ask


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("method", READ)
def test_reading_passes(ask, method, path):
    status, _, _, seen = ask(method, path)
    assert status == 200
    assert seen == [(method, path)]


@pytest.mark.parametrize("path", [*PAGES, *CLOSED])
@pytest.mark.parametrize("method", WRITE)
def test_anything_else_is_refused_in_one_line(ask, method, path):
    status, headers, text, seen = ask(method, path, body=b"{}")
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"
    assert text.count("\n") == 1
    assert seen == []


@pytest.mark.parametrize("path", CLOSED)
def test_only_known_pages_are_open(ask, path):
    status, _, _, seen = ask("GET", path)
    assert status == 404
    assert seen == []


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:80", "10.0.0.7"]
)
def test_own_names_and_addresses_pass(ask, host):
    assert ask("GET", "/api/meta", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "a@b c"]
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_foreign_names_do_not(ask, method, host):
    status, _, text, seen = ask(method, "/api/studies", host=host)
    assert status == 403
    assert "Host" in text
    assert seen == []


def test_a_refused_head_has_no_body(ask):
    status, headers, text, _ = ask("HEAD", "/nothing")
    assert (status, text) == (404, "")
    assert int(headers["Content-Length"]) > 0


def test_headers_protect_every_answer(ask):
    for method, path in (("GET", "/"), ("GET", "/nothing"), ("DELETE", "/")):
        _, headers, _, _ = ask(method, path)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Server"] == "nbtl-search"
        assert headers["Cache-Control"] == "no-store"
    assert "Cache-Control" not in ask("GET", "/static/bundle.js")[1]


def test_the_page_keeps_its_own_content_policy(ask):
    assert ask("GET", "/")[1]["Content-Security-Policy"].startswith("default-src 'self';frame-anc")
    assert ask("GET", "/nothing")[1]["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("path", ["/api/studies/1/note", "/api/studies/1/2/note"])
def test_writable_means_notes(ask, path):
    assert ask("PUT", path, writable=True)[0] == 200
    assert ask("PUT", path, writable=True, HTTP_ORIGIN="http://localhost:8080")[0] == 200
    assert ask("PUT", path)[0] == 405


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/1"),
        ("POST", "/api/studies"),
        ("POST", "/api/studies/1/rename"),
        ("POST", "/api/trials/1/tell"),
        ("POST", "/api/trials/1/user-attrs"),
        ("POST", "/incompatible-rdb-schema"),
        ("POST", "/api/studies/1/note"),
        ("PUT", "/api/studies/1/note/x"),
    ],
)
def test_writable_means_nothing_that_contradicts_the_ledger(ask, method, path):
    status, _, _, seen = ask(method, path, writable=True)
    assert status == 405
    assert seen == []


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9090"])
def test_a_foreign_page_cannot_write_notes(ask, origin):
    status, _, _, seen = ask("PUT", "/api/studies/1/note", writable=True, HTTP_ORIGIN=origin)
    assert status == 403
    assert seen == []


def test_listening_everywhere_adds_the_names_of_the_machine(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Node1")
    monkeypatch.setattr("socket.getfqdn", lambda: "node1.lab.example")
    assert {"node1", "node1.lab.example", "localhost"} <= names_of("0.0.0.0")  # noqa: S104
    assert names_of("lab.example") == {"localhost", "lab.example"}
