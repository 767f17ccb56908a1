"""deploy/nginx.conf: what it hands on of a request, in its text, and by a real nginx where Debian's is installed.

What Debian's nginx is too old for, and what is there only in Docker, is replaced: the name server, `resolve`, ports.
"""

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.app import create_app
from service.keys import new_key
from service.page.session import COOKIE
from service.server import _listen
from service.settings import Settings
from storage.contract import Repository
from storage.records import KeyScope

CONFIGURATION = (Path(__file__).parents[2] / "deploy" / "nginx.conf").read_text()
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
PROXY, OTHER = "127.0.0.2", "127.0.0.3"
"""Where requests come from: an encrypting proxy that an operator has named, and anybody else."""


def test_what_a_request_came_with_is_looked_at_for_every_header() -> None:
    """Each header that tells of the client is made of a map, which is of that header of the request."""
    handed_on = dict(re.findall(r"proxy_set_header (\S+) (\S+);", CONFIGURATION))
    maps = {name: source for source, name in re.findall(r'map "?([^"{]+?)"? (\$\w+) \{', CONFIGURATION)}
    for header in ("X-Request-ID", "X-Forwarded-Proto", "X-Forwarded-For"):
        variable = f"$http_{header.lower().replace('-', '_')}"
        assert maps[handed_on[header]].split()[-1] == variable
        assert ("$is_from_proxy" in maps[handed_on[header]]) is header.startswith("X-Forwarded")
    assert handed_on["Host"] == "$http_host"


def test_whoever_reaches_the_published_port_is_in_the_list_and_no_public_address() -> None:
    [block] = re.findall(r"geo \$is_from_proxy \{([^}]*)\}", CONFIGURATION)
    rows = dict(line.strip().rstrip(";").split() for line in block.strip().splitlines())
    assert rows == {"default": "0", "127.0.0.0/8": "1", "172.16.0.0/12": "1", "192.168.0.0/16": "1"}


class Recorded:
    """The service, with what came to it of each request; it cannot serve `fails`."""

    def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings)
        self.seen: list[tuple[str, str, str]] = []
        self.fails = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            ids = [value.decode() for name, value in scope["headers"] if name == b"x-request-id"]
            self.seen.append((scope["scheme"], scope["client"][0], " ".join(ids)))
            if scope["path"] == self.fails:
                await Response("no room", 503)(scope, receive, send)
                return
        await self.app(scope, receive, send)


@pytest.fixture
def recorded(settings: Settings, repository: Repository) -> Recorded:
    repository.add_key(new_key("somebody", KeyScope.READ)[0])
    return Recorded(settings)


@pytest.fixture
def proxied(recorded: Recorded, tmp_path: Path) -> Iterator[Callable[[str], httpx.Client]]:
    """Clients at an address of this machine, of the service behind nginx that believes PROXY alone."""
    if NGINX is None:
        pytest.skip("needs Debian's package nginx")
    config = uvicorn.Config(recorded, log_config=None, forwarded_allow_ips="*")
    server = uvicorn.Server(config)
    with _listen("127.0.0.1", 0) as listener, socket.create_server(("127.0.0.1", 0)) as free:
        upstream, port = listener.getsockname()[1], free.getsockname()[1]
        free.close()
        text = CONFIGURATION
        for ours, here in (
            (r"server server:8000 resolve ([^;]+);", 2 * rf"server 127.0.0.1:{upstream} \1; "),
            (r"listen 8000;", f"listen 127.0.0.1:{port};"),
            (r"resolver [^;]+;", ""),
            (r"(geo \$is_from_proxy \{)[^}]*\}", rf"\1 default 0; {PROXY} 1; }}"),
            (r"http \{", "http {\n" + "".join(f"    {name}_temp_path {name};\n" for name in TEMPORARY)),
        ):
            text, count = re.subn(ours, here, text)
            assert count == 1, ours
        (tmp_path / "nginx.conf").write_text(text)
        (tmp_path / "logs").mkdir()
        # One process, as the user of this one.
        options = "daemon off; master_process off; pid nginx.pid; error_log stderr;"
        command = [NGINX, "-p", str(tmp_path), "-c", "nginx.conf", "-g", options]
        tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert tested.returncode == 0, tested.stderr
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with (tmp_path / "stderr").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as nginx:
            try:
                _wait_for(port, nginx, tmp_path / "stderr")

                def at(address: str) -> httpx.Client:
                    transport = httpx.HTTPTransport(local_address=address)
                    return httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport)

                yield at
            finally:
                nginx.kill()
                server.should_exit = True
                thread.join()


TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def _wait_for(port: int, nginx: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert nginx.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return


def test_the_id_that_a_request_came_with_is_kept(proxied: Callable[[str], httpx.Client], recorded: Recorded) -> None:
    with proxied(OTHER) as client:
        kept = client.get("/readyz", headers={"X-Request-ID": "from.a-client_7"})
        assert kept.headers["X-Request-ID"] == recorded.seen[-1][2] == "from.a-client_7"
        for wrong in ("two words", "x" * 65, 'a"b', ""):
            answer = client.get("/readyz", headers={"X-Request-ID": wrong})
            assert answer.headers["X-Request-ID"] == recorded.seen[-1][2]
            assert re.fullmatch("[0-9a-f]{32}", recorded.seen[-1][2])
        assert client.get("/readyz").headers["X-Request-ID"] == recorded.seen[-1][2] != ""
        assert client.get("/metrics").status_code == 404


@pytest.mark.parametrize(
    ("address", "sent", "scheme", "client"),
    [
        (PROXY, {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}, "https", "203.0.113.7"),
        (PROXY, {"X-Forwarded-For": "198.51.100.1, 10.0.0.1,  2001:db8::7"}, "http", "2001:db8::7"),
        (PROXY, {"X-Forwarded-Proto": "gopher", "X-Forwarded-For": "198.51.100.1, unknown"}, "http", PROXY),
        (PROXY, {}, "http", PROXY),
        (OTHER, {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}, "http", OTHER),
    ],
)
def test_a_proxy_in_front_is_believed_and_nobody_else(
    proxied: Callable[[str], httpx.Client],
    recorded: Recorded,
    address: str,
    sent: dict[str, str],
    scheme: str,
    client: str,
) -> None:
    with proxied(address) as asking:
        cookie = asking.get("/login", headers=sent).headers["set-cookie"]
    assert recorded.seen[-1][:2] == (scheme, client)
    assert cookie.startswith(f"{COOKIE}=")
    assert ("Secure" in cookie) is (scheme == "https")


def test_what_one_path_answers_takes_no_server_away(proxied: Callable[[str], httpx.Client], recorded: Recorded) -> None:
    """A 503 is asked of the other server, too; then it is the answer, and all else is served on."""
    recorded.fails = "/explorer"
    with proxied(OTHER) as client:
        for _ in range(3):
            answer = client.get(recorded.fails)
            assert (answer.status_code, answer.text) == (503, "no room")
            assert client.get("/readyz").status_code == 200
    assert len(recorded.seen) == 3 * 3


def test_long_bodies_stay_out_of_the_proxy_and_archives_pass(
    proxied: Callable[[str], httpx.Client], recorded: Recorded
) -> None:
    with proxied(OTHER) as client:
        seen = len(recorded.seen)
        long = bytes(20 * 2**20 + 1)
        assert client.post("/v1/plans", content=long).status_code == 413
        assert len(recorded.seen) == seen
        assert client.post("/v1/datasets", content=long).status_code == 401
    most = Settings.model_fields["max_request_bytes"].metadata
    assert max(x.le for x in most if hasattr(x, "le")) < 20 * 2**20


def test_connections_to_servers_are_left_before_they_close_them() -> None:
    [seconds] = re.findall(r"^\s+keepalive_timeout (\d+)s;", CONFIGURATION, re.MULTILINE)
    assert int(seconds) < uvicorn.Config("app").timeout_keep_alive
