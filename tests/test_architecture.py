"""The import arrows, the light import, and the size of modules."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "pruning": set(),
    "recovery": {"pruning"},
    "storage": {"pruning"},
    "migrations": {"storage"},
    "values": {"storage", "pruning"},
    "engines": {"storage", "pruning"},
    "mcts": {"engines", "values", "storage", "pruning"},
    "policy_model": {"values", "storage", "pruning"},
    "service": {"policy_model", "mcts", "values", "storage", "recovery", "pruning"},
    "lop": {"service", "policy_model", "mcts", "engines", "values", "storage", "recovery", "pruning"},
    "reference": {"pruning"},
    "documentation": {"lop", "service"},
}
"""Which of our packages each package may import, besides itself."""

ROOMS = {
    "pruning": (
        "anatomy",
        "checkpoints",
        "planning",
        "data",
        "forward",
        "cutting",
        "measuring",
        "allocators",
        "devices",
    ),
    "lop": ("console", "workflows", "commands"),
}
"""The rooms of a package, lowest first. Below them lies the ground floor: the modules of the package itself. Each room
imports the ground floor and rooms before it; the ground floor imports no room."""

COMPOSES = {"lop.cli", "lop"}
"""Modules of a ground floor that put rooms together: the command line, and the names that `import lop` offers."""

MAX_LINES = 500


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in modules(package)
        for name in imported(path)
        if name in MAY_IMPORT and name not in allowed
    }
    assert found == set()


def imported_modules(path: Path) -> Iterator[str]:
    """Full names that a module imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_one_way(package: str) -> None:
    rooms = ("", *ROOMS[package])

    def floor(name: str) -> int:
        parts = name.split(".")
        return rooms.index(parts[1]) if len(parts) > 1 and parts[1] in rooms else 0

    wrong = []
    for path in modules(package):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module in COMPOSES:
            continue
        wrong += [
            (module, name)
            for name in imported_modules(path)
            if name.split(".")[0] == package and floor(name) > floor(module)
        ]
    assert wrong == []


@pytest.mark.parametrize("package", ROOMS)
def test_every_folder_of_a_package_is_a_room(package: str) -> None:
    places = [path.relative_to(ROOT / package).parts for path in modules(package)]
    assert {parts[0] for parts in places if len(parts) > 1} == set(ROOMS[package])


def test_no_package_hands_on_what_another_module_defines() -> None:
    handing_on = [
        str(path.relative_to(ROOT))
        for package in MAY_IMPORT
        for path in modules(package)
        if path.name == "__init__.py" and path.parent != ROOT / "lop" and set(imported(path)) & set(MAY_IMPORT)
    ]
    assert handing_on == []


def test_every_package_has_its_arrows() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "benchmarks"}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize("heavy", ["torch", "transformers", "fastapi", "ray", "sqlalchemy"])
@pytest.mark.parametrize("module", ["lop", "lop.client", "lop.cli"])
def test_importing_lop_is_light(module: str, heavy: str) -> None:
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("heavy", ["torch", "transformers"])
def test_planning_needs_no_torch(heavy: str) -> None:
    names = ", ".join(
        f"pruning.planning.{path.stem}" for path in modules("pruning/planning") if path.stem != "__init__"
    )
    code = f"import sys, {names}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("package", [*MAY_IMPORT, "tests"])
def test_modules_stay_small_and_named_for_what_they_hold(package: str) -> None:
    too_long = [str(path) for path in modules(package) if len(path.read_text().splitlines()) > MAX_LINES]
    vague = [str(path) for path in modules(package) if path.stem in {"utils", "util", "helpers", "common", "misc"}]
    assert too_long == []
    assert vague == []


def test_no_pickle_and_no_remote_code() -> None:
    forbidden = ("import pickle", "torch.save(", "torch.load(", "trust_remote_code=True", "allow_pickle=True")
    found = [
        (str(path.relative_to(ROOT)), word)
        for package in MAY_IMPORT
        for path in modules(package)
        for word in forbidden
        if word in path.read_text()
    ]
    assert found == []
