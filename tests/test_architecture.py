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
    "storage": {"pruning"},
    "migrations": {"storage"},
    "mcts": {"storage", "pruning"},
    "policy_model": {"storage", "pruning"},
    "service": {"policy_model", "mcts", "storage", "pruning"},
    "lop": {"service", "policy_model", "mcts", "storage", "pruning"},
    "reference": {"pruning"},
}
"""Which of our packages each package may import, besides itself."""

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


def test_every_package_has_its_arrows() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize("heavy", ["torch", "transformers", "fastapi", "ray", "sqlalchemy"])
@pytest.mark.parametrize("module", ["lop", "lop.client", "lop.cli"])
def test_importing_lop_is_light(module: str, heavy: str) -> None:
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
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
