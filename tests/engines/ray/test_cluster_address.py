"""Addresses of Ray clusters: their forms, and what is said when nothing of the kind answers."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.ray.cluster_address import AUTO, ClusterAddress, resolve_address
from pruning.errors import InputError

SETTINGS_FRAME = b"\0\0\0\x04\0\0\0\0\0"


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A port whose listener reads what the first client has to say and answers `reply`."""

    def serve() -> None:
        client, _ = server.accept()
        with client:
            client.recv(1000)
            client.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:6379", ClusterAddress("10.0.0.1", 6379)),
        ("head.example:6379", ClusterAddress("head.example", 6379)),
        ("ray://head:10001", ClusterAddress("head", 10001, through_proxy=True)),
        ("[fd00::1]:6379", ClusterAddress("fd00::1", 6379)),
    ],
)
def test_forms(text: str, expected: ClusterAddress) -> None:
    assert ClusterAddress.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    ["", "head", "head:", ":6379", "head:0", "head:70000", "head:x", "http://head:80", "ray://head", "ray://",
     "head:6379/path", "me@head:6379", "fd00::1:6379", "ray:head:6379"],
)  # fmt: skip
def test_bad_forms(text: str) -> None:
    with pytest.raises(InputError, match=r"names a host and a port.*HOST:PORT.*ray://HOST:PORT"):
        ClusterAddress.parse(text)


def test_loopback_addresses() -> None:
    assert [ClusterAddress(host, 1).is_loopback for host in ("localhost", "127.0.0.2", "::1", "10.0.0.1")] == [
        True,
        True,
        True,
        False,
    ]


def test_a_grpc_server_is_believed() -> None:
    with answering(SETTINGS_FRAME) as port:
        ClusterAddress("127.0.0.1", port).probe()


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", SETTINGS_FRAME[:5]])
def test_another_server_is_not(reply: bytes) -> None:
    with answering(reply) as port, pytest.raises(InputError, match=f"127.0.0.1:{port}: something else than Ray"):
        ClusterAddress("127.0.0.1", port).probe()


def test_tls_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ClusterAddress("127.0.0.1", server.getsockname()[1]).probe()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match=f"must answer.*127.0.0.1:{port}: .*refused.*ray start --head"):
        ClusterAddress("127.0.0.1", port).probe()


def test_a_silent_listener_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = ClusterAddress("127.0.0.1", server.getsockname()[1])
        with pytest.raises(InputError, match="timed out"):
            address.probe(timeout_seconds=0.2)


def test_auto_is_the_environment_s_cluster_then_the_last_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert resolve_address(None) is None
    assert resolve_address(AUTO) == AUTO
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert resolve_address(AUTO) == ClusterAddress("10.0.0.1", 6379)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert resolve_address(AUTO) == ClusterAddress("head", 10001, through_proxy=True)
    assert resolve_address("10.0.0.2:6379") == ClusterAddress("10.0.0.2", 6379)
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(InputError, match="'nonsense'"):
        resolve_address(AUTO)
