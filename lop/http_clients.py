"""httpx clients that work in a company's shell: its proxies are for other machines than this one.

httpx takes proxies from the environment, and makes all of them ready before it knows which address is asked for: a
SOCKS proxy without the package for it ends every client, also of an address that no proxy is for.
"""

import ipaddress
import os
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import httpx

from pruning.errors import InputError, MissingExtraError
from pruning.reasons import reason_of

Made = TypeVar("Made", httpx.Client, httpx.AsyncClient)


def http_client(url: str, **options: Any) -> httpx.Client:
    """A client for the server at `url`, with the environment's proxies unless none is for that host.

    Raises:
        InputError: the URL is none, or the environment's proxies or certificates cannot be used.
        MissingExtraError: the proxy needs a package that is not installed.
    """
    return _made(httpx.Client, url, options)


def async_http_client(url: str, **options: Any) -> httpx.AsyncClient:
    """As `http_client`, for an event loop."""
    return _made(httpx.AsyncClient, url, options)


def _made(make: Callable[..., Made], url: str, options: dict[str, Any]) -> Made:
    if not url.startswith(("http://", "https://")):
        raise InputError("the server's URL starts with http:// or https://", values=repr(url))
    host = _host(url)
    try:
        if needs_no_proxy(host):
            options = {"verify": httpx.create_ssl_context(), "trust_env": False, **options}
        return make(**options)
    except ImportError as error:
        raise MissingExtraError(
            "a SOCKS proxy needs the package socksio",
            values=_proxies(),
            remedy='Install it with `pip install "httpx[socks]"`, or name the host in NO_PROXY',
        ) from error
    except (httpx.InvalidURL, ValueError, OSError) as error:
        raise InputError(
            "a connection takes proxies and certificates from the environment, which must be usable",
            values=f"{reason_of(error)}; {_proxies()}",
            remedy="Correct or unset ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR",
        ) from error


def _host(url: str) -> str:
    """The host that `url` names; raises InputError."""
    try:
        parsed = httpx.URL(url)
        reason = "" if parsed.host else "it names no host"
        if parsed.port is not None and not 0 < parsed.port < 2**16:
            reason = f"port {parsed.port} is not between 1 and 65535"
    except (httpx.InvalidURL, ValueError) as error:
        reason = reason_of(error)
    if reason:
        raise InputError("the server's URL must be one", values=f"{url!r}: {reason}", remedy="Correct it")
    return parsed.host


def needs_no_proxy(host: str) -> bool:
    """Whether `host` is this machine, or one that NO_PROXY names."""
    try:
        if ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        if host == "localhost" or host.endswith(".localhost"):
            return True
    return bool(getproxies_environment().get("no")) and bool(proxy_bypass(host))


def _proxies() -> str:
    """The environment's proxies, without what would log in to them."""
    found = {name: address for name, address in getproxies_environment().items() if name != "no"}
    shown = [f"{name}_proxy={_without_login(address)}" for name, address in sorted(found.items())]
    shown += [f"{name}={os.environ[name]}" for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
    return ", ".join(shown) or "no proxy"


def _without_login(address: str) -> str:
    try:
        login = "@" in urlsplit(address).netloc
    except ValueError:
        login = "@" in address
    if not login:
        return address
    scheme, separator, rest = address.rpartition("@")[0].partition("://")[0], "://", address.rpartition("@")[2]
    return f"{scheme}{separator}***@{rest}"
