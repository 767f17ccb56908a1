"""`python -m tests.installed_alone EXTRAS WORDS...`: the `lop` command (or `-c CODE`) as if only `lop-service[EXTRAS]`
were installed.

What pyproject.toml and the installed packages say that they need stays; every other package is hidden. So an extra that
lacks something fails here, though the environment of the tests has everything. EXTRAS may be empty: the client alone.
"""

import importlib.metadata as metadata
import sys
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
OURS = "lop-service"


def needed_distributions(extras: Iterable[str]) -> set[str]:
    """The names of all distributions that `lop-service[extras]` brings, itself excluded."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    waiting = [Requirement(f"{OURS}[{','.join(extras)}]")]
    seen: set[tuple[str, str]] = set()
    found: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.add(name)
        for extra in {"", *requirement.extras} - {x for n, x in seen if n == name}:
            seen.add((name, extra))
            if name == OURS:
                texts = project["optional-dependencies"][extra] if extra else project["dependencies"]
            else:
                texts = metadata.distribution(name).requires or []
            needs = [Requirement(text) for text in texts]
            waiting += [x for x in needs if x.marker is None or x.marker.evaluate({"extra": extra})]
    return found - {OURS}


_modules = cache(metadata.packages_distributions)


def hidden_modules(extras: Iterable[str]) -> set[str]:
    """Top-level modules of installed distributions that are not needed."""
    needed = needed_distributions(extras)
    return {
        module
        for module, names in _modules().items()
        if not {canonicalize_name(name) for name in names} & {*needed, OURS}
    }


class Hiding:
    """A finder of modules that does not find some: importing these fails, and asking for them says that there are none,
    as it does of what is not installed."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self._finder = finder
        self._hidden = hidden

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self._hidden:
            return None
        spec: ModuleSpec | None = self._finder.find_spec(fullname, path, target)
        return spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def main(extras: str, words: Sequence[str]) -> None:
    hidden = hidden_modules(filter(None, extras.split(",")))
    sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]
    for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
        del sys.modules[name]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})  # noqa: S102 (a test's own words)
        return
    from lop.cli import main as lop_main

    sys.argv = ["lop", *words]
    lop_main()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
