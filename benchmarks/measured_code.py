"""Which code a result was measured with: a digest of every source file of this repository that ran.

Of the benchmark's own process these are the files that it imported. Processes that it starts (`lop apply`, `lop serve`,
pytest) cannot be asked afterwards; theirs are what the module that they run imports, read from the source, imports
inside functions included. Digests are of syntax trees without docstrings: comments, docstrings and formatting do not
make a result stale. Files that are not Python (weights, samples, prompts) are not covered.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHANGED_MEANWHILE = "changed while it was measured"
SEVERAL_VERSIONS = "measured with several versions"
"""Instead of digests; no file has them, so what carries one is stale."""


class Sources:
    """The Python files of the repository at `root` as they are now: a checkout may move on while a benchmark runs.

    A package is a folder of `root` with modules in it; virtual environments and build folders are none.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        packages = sorted({path.parent for path in root.glob("[!.]*/*.py")})
        paths = [path for package in packages for path in package.rglob("*.py")]
        self._read = {self._name(path): path.read_bytes() for path in paths if not self._is_hidden(path)}

    def imported(self) -> set[str]:
        """Files that this process has imported, as paths below the root."""
        found = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        paths = (Path(file) for file in found if file)
        return {self._name(path) for path in paths if path.is_relative_to(self.root)} & self._read.keys()

    def reached(self, modules: Iterable[str]) -> set[str]:
        """Files of `modules` and of all that these import, but for type checkers alone.

        Raises ValueError for a module that is not there.
        """
        found: set[str] = set()
        for module in modules:
            own = set(self._files_of(module))
            if not own & {f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"}:
                raise ValueError(f"a module that a benchmark runs must be in the repository: {module}")
            todo = own
            while todo:
                found |= todo
                names = {name for file in todo for name in _imported_names(ast.parse(self._read[file]))}
                todo = {file for name in names for file in self._files_of(name)} - found
        return found

    def digests(self, files: Iterable[str]) -> dict[str, str]:
        """The digest of each file as it was read, `CHANGED_MEANWHILE` where the file says something else by now."""
        found = {}
        for file in sorted(files):
            path, read = self.root / file, self._read[file]
            digest = source_digest(read)
            is_same = path.is_file() and (path.read_bytes() == read or digest_of_file(path) == digest)
            found[file] = digest if is_same else CHANGED_MEANWHILE
        return found

    def _files_of(self, name: str) -> Iterator[str]:
        """The modules on the way to `name`, which may also be something in the last one."""
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            place = "/".join(parts[:end])
            yield from (file for file in (f"{place}.py", f"{place}/__init__.py") if file in self._read)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _is_hidden(self, path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(self.root).parts)


AT_START = Sources(ROOT)


def measured_code(runs: Iterable[str] = (), *, sources: Sources = AT_START) -> dict[str, str]:
    """The digest of every file that ran in this process, or in those that it started to run the modules `runs`."""
    return sources.digests(sources.imported() | sources.reached(runs))


def merged(codes: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The code of a result whose parts were measured with `codes`; `SEVERAL_VERSIONS` where these differ."""
    found: dict[str, str] = {}
    for code in codes:
        for file, digest in code.items():
            found[file] = digest if found.get(file, digest) == digest else SEVERAL_VERSIONS
    return dict(sorted(found.items()))


def changes_since(code: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """What has become of the files of `code` that are no longer what they were; empty if all are."""
    found = {}
    for file, kept in code.items():
        now = digest_of_file(root / file)
        if kept in (CHANGED_MEANWHILE, SEVERAL_VERSIONS):
            found[file] = kept
        elif now != kept:
            found[file] = "is gone" if now is None else "has changed"
    return found


def digest_of_file(path: Path) -> str | None:
    """`source_digest` of a file; None if there is none, the file's own bytes if they are no Python."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        return source_digest(content)
    except (SyntaxError, ValueError):
        return hashlib.sha256(content).hexdigest()


@cache
def source_digest(source: bytes) -> str:
    """Sixteen hexadecimal digits that depend on what Python code does, not on its comments, docstrings or layout."""
    return hashlib.sha256(repr(_tree(ast.parse(source))).encode()).hexdigest()[:16]


def _tree(node: object) -> object:
    """The syntax tree as tuples. `ast.dump` writes empty fields, of which every version of Python has others."""
    if isinstance(node, list):
        return [_tree(part) for part in node if not _is_text_alone(part)]
    if isinstance(node, ast.AST):
        fields = ((name, _tree(value)) for name, value in ast.iter_fields(node))
        return (type(node).__name__, *(field for field in fields if field[1] not in (None, [])))
    return node


def _is_text_alone(node: object) -> bool:
    """Docstrings, also those behind attributes: statements that are a text and do nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported_names(tree: ast.AST) -> Iterator[str]:
    """Full names that are imported anywhere below `tree`, but under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield from _imported_names(node)
