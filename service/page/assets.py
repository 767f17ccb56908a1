"""The files that pages load: our own, htmx and Swagger UI (assets/README.md: which versions)."""

import hashlib
from functools import lru_cache
from importlib.resources import files

from pruning.errors import NotFoundError

MEDIA_TYPES = {
    "htmx.min.js": "text/javascript",
    "page.js": "text/javascript",
    "reference.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}


@lru_cache(maxsize=len(MEDIA_TYPES))
def asset(name: str) -> bytes:
    """The content of the file; raises NotFoundError for any other name."""
    if name not in MEDIA_TYPES:
        raise NotFoundError("pages load these files", values=repr(name[:80]), remedy=", ".join(MEDIA_TYPES))
    return files("service.page").joinpath("assets", name).read_bytes()


@lru_cache(maxsize=len(MEDIA_TYPES))
def asset_version(name: str) -> str:
    """Part of the file's address: another content has another one, so browsers may keep it for good."""
    return hashlib.sha256(asset(name)).hexdigest()[:16]
