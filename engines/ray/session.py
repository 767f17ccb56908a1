"""The connection to Ray; the only module that imports it.

Silent, and leaving things as they were: what was there before is there afterwards.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.ray.cluster_address import ClusterAddress
from engines.ray.last_words import LastWords
from pruning.errors import InputError, LopError
from pruning.missing_packages import missing_extra

try:
    import ray
    from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError
except ImportError as error:
    raise missing_extra("ray", "searching with Ray needs the ray extra", values=str(error)) from error

__all__ = ["RayError", "RaySession", "RayTaskError", "RuntimeEnvSetupError", "cluster_lost", "ray", "reason_of"]

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a Ray that is started here: it holds the recipe, a few MB for the largest models."""

SILENCE_SECONDS = 30.0
"""How long a cluster's head may not answer. After 60 s Ray itself ends the whole process."""

_CHECK_SECONDS = 5.0

_ENDED = (
    "error: this process was ended, from outside or by Ray, which does so when its cluster goes away. "
    "What was stored is intact; run the same again when the cluster is back, or on another"
)


class RaySession:
    """A connection to Ray: started, joined, or found in the process.

    Args:
        address: of the cluster to join; None: start a Ray on this machine. A process that is connected stays where it
            is.
        num_cpus: of the Ray that is started; None: one a core.

    Raises InputError if the cluster does not answer, or does not take this process.
    """

    def __init__(self, address: ClusterAddress | str | None, num_cpus: int | None) -> None:
        self._folder: Path | None = None
        self._connected = False
        self._last_words: LastWords | None = None
        self._terminate: Any = None
        self._head: ClusterAddress | None = None
        self._next_check = 0.0
        self._silent_since: float | None = None
        if ray.is_initialized():
            self._begin_watch(None)
            return
        quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if threading.current_thread() is threading.main_thread():
            self._terminate = signal.getsignal(signal.SIGTERM)
        self._connected = True
        try:
            if address is None:
                self._start(num_cpus, quiet)
            else:
                _join(address, quiet)
                self._last_words = LastWords(_ENDED)
            self._begin_watch(address)
        except BaseException:
            self.close()
            raise
        # Ray's own handler ends the process in good order; one that was there knows better.
        if self._terminate not in (None, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, self._terminate)

    def check(self) -> None:
        """Raises LopError if the cluster's head has not answered for too long; to be called again and again."""
        now = time.monotonic()
        if self._head is None or now < self._next_check:
            return
        try:
            self._head.probe()
            self._silent_since = None
        except InputError as error:
            self._silent_since = self._silent_since or now
            if now - self._silent_since > SILENCE_SECONDS:
                raise cluster_lost(error.values) from error
        self._next_check = time.monotonic() + _CHECK_SECONDS

    def close(self) -> None:
        """Disconnect; a Ray that was started here ends."""
        if not self._connected:
            return
        self._connected = False
        ray.shutdown()
        if self._last_words is not None:
            self._last_words.withdraw()
        if self._terminate is not None:
            signal.signal(signal.SIGTERM, self._terminate)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _begin_watch(self, address: ClusterAddress | str | None) -> None:
        """Note whom to ask: the proxy, or the process that every node of the cluster reports to."""
        if isinstance(address, ClusterAddress) and address.through_proxy:
            self._head = address
        elif not ray.util.client.ray.is_connected():
            self._head = ClusterAddress.parse(ray.get_runtime_context().gcs_address)
        self._next_check = time.monotonic() + _CHECK_SECONDS

    def _start(self, num_cpus: int | None, quiet: Mapping[str, Any]) -> None:
        # A folder of its own: another Ray of this machine's users is neither found nor disturbed.
        self._folder = Path(tempfile.mkdtemp(prefix="lop-ray-", dir=os.environ.get("RAY_TMPDIR")))
        with _environment({"RAY_USAGE_STATS_ENABLED": "0"}):
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(self._folder),
                **quiet,
            )


def _join(address: ClusterAddress | str, quiet: Mapping[str, Any]) -> None:
    """Connect to a cluster that runs; raises InputError if there is none, or it does not take this process."""
    if isinstance(address, ClusterAddress):
        if address.is_loopback and not address.through_proxy:  # Ray goes to the node's own address then
            ClusterAddress(ray.util.get_node_ip_address(), address.port).probe()
        else:
            address.probe()
    try:
        ray.init(address=str(address), **quiet)
    except (OSError, RuntimeError, ValueError, AssertionError, RayError) as error:
        raise InputError(
            "a Ray cluster must take this process as a driver",
            values=f"{address}: {reason_of(error)}",
            remedy="It takes processes on its own machines, with its versions of Python and Ray; ray://HOST:10001 "
            "is for others",
        ) from error


def cluster_lost(reason: str) -> LopError:
    """The error for a cluster that was there and is not any more."""
    return LopError(
        "the cluster must stay: it went away",
        values=reason,
        remedy="What was stored is intact; run the same again when the cluster is back, or on another",
    )


class _environment:  # noqa: N801 (used like a function)
    """Environment variables for the time of a block; those that are set already stay."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._added = {name: value for name, value in variables.items() if name not in os.environ}

    def __enter__(self) -> None:
        os.environ.update(self._added)

    def __exit__(self, *_: object) -> None:
        for name in self._added:
            os.environ.pop(name, None)


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line: the last of a message, below Ray's particulars and tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
