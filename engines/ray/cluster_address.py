"""Where a Ray cluster is: the forms of an address, and whether anything that speaks its protocol answers there.

Ray itself waits two minutes for a cluster that is not there, so it is asked only once something answered.
"""

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pruning.errors import InputError

AUTO = "auto"
"""The address that stands for the cluster that runs on this machine."""

PROBE_TIMEOUT_SECONDS = 3.0

# RFC 9113, section 3.4: a client begins with this preface and a SETTINGS frame, and so does the server's answer. Every
# gRPC server, which Ray's head and its client proxy are, speaks it.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_EMPTY_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
_SETTINGS_TYPE = 4


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """`host:port` of a cluster's head, or `ray://host:port` of its proxy for clients outside of the cluster."""

    host: str
    port: int
    through_proxy: bool = False

    @classmethod
    def parse(cls, text: str) -> "ClusterAddress":
        """Raises InputError unless `text` is `host:port` or `ray://host:port`, the host in [] if it is IPv6."""
        remedy = f"Give {AUTO}, HOST:PORT (6379 is Ray's default) or ray://HOST:PORT (10001)"
        wrong = InputError("a Ray address names a host and a port", values=repr(text), remedy=remedy)
        try:
            parts = urlsplit(text if "://" in text else f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise wrong from error
        plain = text.removeprefix("ray://")
        if parts.scheme not in ("", "ray") or not host or not port or parts.netloc != plain or "@" in plain:
            raise wrong
        return cls(host, port, through_proxy=parts.scheme == "ray")

    @property
    def is_loopback(self) -> bool:
        """Whether it names this machine in a way that means another machine elsewhere."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ray://' if self.through_proxy else ''}{host}:{self.port}"

    def probe(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> None:
        """Raises InputError unless a gRPC server answers in time; where Ray uses TLS, anything that listens will do."""
        try:
            with socket.create_connection((self.host, self.port), timeout=timeout_seconds) as connection:
                if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                    return
                connection.sendall(_HTTP2_PREFACE + _EMPTY_SETTINGS)
                header = connection.makefile("rb").read(9)
        except OSError as error:
            raise self._unreachable(str(error)) from error
        if len(header) < 9 or header[3] != _SETTINGS_TYPE:
            raise self._unreachable("something else than Ray answers")

    def _unreachable(self, reason: str) -> InputError:
        return InputError(
            "a Ray cluster must answer at its address",
            values=f"{self}: {reason}",
            remedy="Start one with `ray start --head`, or leave the address out to use this machine alone",
        )


def resolve_address(text: str | None) -> ClusterAddress | str | None:
    """What an address means; raises InputError if it has none of the forms.

    "auto" is what RAY_ADDRESS names, else the cluster that `ray start` last started on this machine, else what Ray
    finds there, for which AUTO is returned. None, this machine alone, stays None.
    """
    if text is None:
        return None
    if text != AUTO:
        return ClusterAddress.parse(text)
    named = os.environ.get("RAY_ADDRESS", "")
    if not named:
        last = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
        named = last.read_text(encoding="utf-8").strip() if last.is_file() else AUTO
    return AUTO if named in (AUTO, "local") else ClusterAddress.parse(named)
