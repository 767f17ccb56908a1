"""Clients in a company's shell: proxies are not for this machine, and what cannot be used is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import pytest

from lop.client import Client
from lop.http_clients import http_client, needs_no_proxy
from pruning.errors import InputError, LopError, LopServerError, MissingExtraError

NAMES = ("all", "http", "https", "no")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(f"{x}_proxy" for x in NAMES), "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"items": [], "next": null}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PROXIES = [
    {"ALL_PROXY": "socks5://127.0.0.1:9"},
    {"ALL_PROXY": "socks5h://me:secret@127.0.0.1:9"},
    {"HTTP_PROXY": "http://127.0.0.1:9"},
    {"http_proxy": "socks5://127.0.0.1:9", "no_proxy": "example.com"},
    {"HTTP_PROXY": "no url at all"},
]


@pytest.mark.parametrize("variables", PROXIES, ids=str)
def test_this_machine_needs_no_proxy(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with listening() as address, Client(f"http://{address}") as client:
        assert client.models() == []


def test_hosts_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "internal.example, .corp.example,10.0.0.7")
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost", "lop.localhost", "internal.example", "10.0.0.7",
                 "a.corp.example"):  # fmt: skip
        assert needs_no_proxy(host), host
    for host in ("example.com", "10.0.0.8", "localhost.example.com"):
        assert not needs_no_proxy(host), host
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    http_client("http://internal.example:8000").close()


def test_a_socks_proxy_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:sec@ret@proxy.example:1080")
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)
    with pytest.raises(MissingExtraError, match=r"httpx\[socks\].*NO_PROXY") as caught:
        Client("http://lop.example:8000")
    assert "proxy.example:1080" in str(caught.value)
    assert "sec" not in str(caught.value).replace("socks", "")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HTTP_PROXY", "ftp://proxy:1"), ("ALL_PROXY", "nonsense://x"), ("HTTPS_PROXY", "http://proxy:port"),
     ("SSL_CERT_FILE", "/no/such/file.pem")],
)  # fmt: skip
def test_an_environment_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(LopError) as caught:
        Client("https://lop.example:8000")
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h:port", "http://[::1", "http://h:99999999", "ftp://h", "", "http://\x00"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(InputError, match="URL"):
        Client(url)


def test_the_demo_finds_its_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from lop.workflows.demo import _is_ready

    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with listening() as address:
        assert _is_ready(f"http://{address}")
    assert not _is_ready("http://127.0.0.1:9")


def test_a_server_that_does_not_answer_is_named_once() -> None:
    with pytest.raises(LopServerError, match=r"http://127\.0\.0\.1:9/v1/models: "):
        Client("http://127.0.0.1:9").models()


def prefixed(request: httpx.Request) -> httpx.Response:
    """A server behind the prefix /lop, that writes it into its links, or does not."""
    path = request.url.path
    assert path.startswith("/lop/v1/models"), path
    more = request.url.params.get("offset") is None
    link = {"new": "/lop/v1/models?offset=1", "old": "/v1/models?offset=1"}[request.headers["kind"]]
    return httpx.Response(200, json={"items": [{"path": path}], "next": link if more else None})


@pytest.mark.parametrize("kind", ["new", "old"])
def test_links_with_and_without_the_prefix_of_a_proxy(kind: str) -> None:
    with Client("http://lop.example/lop", transport=httpx.MockTransport(prefixed)) as client:
        client._http.headers["kind"] = kind
        assert client.models() == [{"path": "/lop/v1/models"}] * 2
