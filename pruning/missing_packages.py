"""Packages that are not installed: named, with the command that installs them. The only place that knows it.

`pip install lop-service` is the client. Everything else is an extra of pyproject.toml, `lop-service[EXTRA]`; what
transformers asks for on its way has no extra, and is named by itself.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import MappingProxyType

from pruning.errors import MissingExtraError

_APPLY = ("torch", "transformers", "huggingface_hub", "jinja2", "PIL", "yaml")
_PLANNING = ("sqlalchemy", "alembic", "scipy", "threadpoolctl", "huggingface_hub")
EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "apply": _APPLY,
        "search": (*_APPLY, *_PLANNING, "pydantic_settings"),
        "server": (
            *("fastapi", "starlette", "uvicorn", "pydantic_settings", "torch", *_PLANNING),
            *("jinja2", "limits", "prometheus_client"),
        ),
        "postgres": ("psycopg",),
        "ray": ("ray",),
        "recover": (*_APPLY, "peft", "accelerate"),
        "plots": ("matplotlib",),
        "gguf": ("gguf",),
        "quantise": ("compressed_tensors",),
        "llama-cpp": ("llama_cpp",),
        "store": ("s3fs",),
        "reference": ("sklearn", "tokenizers"),
    }
)
"""For each extra the modules that it installs, by the names that are imported. Of several, the first here is named."""


def install_command(extra: str) -> str:
    """What installs `extra`."""
    return f'pip install "lop-service[{extra}]"'


def missing_extra(extra: str, rule: str, *, values: str = "", note: str = "") -> MissingExtraError:
    """The error that says what `extra` is needed for; `note` follows the command."""
    return MissingExtraError(rule, values=values, remedy=f"Install it: {install_command(extra)}{note}")


def extra_of(error: ImportError, *, preferred: str | None = None) -> MissingExtraError | None:
    """What to raise instead of `error` if a module of an extra is missing; None if it is about something else.

    Where several extras install the module, `preferred` is named if it is one of them.
    """
    if isinstance(error, MissingExtraError):
        return error
    module = (error.name or "").split(".")[0]
    extras = [extra for extra, modules in EXTRAS.items() if module in modules]
    if not extras or is_installed(module):
        return None
    extra = preferred if preferred in extras else extras[0]
    return missing_extra(extra, f"this needs {module}, which is not installed")


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Makes of a module that is missing in the block, and that `extra` installs, the error that says so."""
    try:
        yield
    except ImportError as error:
        if (missing := extra_of(error, preferred=extra)) is None or missing is error:
            raise
        raise missing from error


_ASKS = (
    re.compile(r"pip install (?:-U |--upgrade )*['\"`]?([A-Za-z][\w.\-\[\],]*)"),
    re.compile(r"Missing optional dependencies: ([A-Za-z][\w.\-]*)"),
    re.compile(r"requires the ([\w.\-]+) library but it was not found", re.IGNORECASE),
    re.compile(r"Package [`'\"]?([\w.\-]+)[`'\"]? is required"),
)
_INSTALLED_AS = {
    "PIL": "pillow",
    "google": "protobuf",
    "cv2": "opencv-python-headless",
    "sentencepiece": "sentencepiece protobuf",
}


def is_installed(name: str) -> bool:
    """Whether the package `name` can be imported."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def missing_package(error: BaseException, *, of: str) -> MissingExtraError | None:
    """What to raise instead of `error` if it says that a package is not installed; None if it says nothing like it.

    `of` is what cannot be had without it, for instance the folder of a processor.
    """
    name = _named(error)
    if name is None:
        return None
    package = _INSTALLED_AS.get(name, name)
    return MissingExtraError(
        f"`{name}` must be installed for this checkpoint",
        values=of,
        remedy=f"Install it: pip install {package}",
    )


def _named(error: BaseException) -> str | None:
    """The package that `error`, or what it was raised from, asks for."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ModuleNotFoundError) and seen.name:
            return seen.name.split(".")[0]
        for pattern in _ASKS:
            if found := pattern.search(str(seen)):
                return found[1].rstrip(".").lower()
        seen = seen.__cause__ or seen.__context__
    return "a package that transformers does not name" if isinstance(error, ImportError) else None
