"""Results are shown as long as the code that they were measured with is what it was, and refused by name after that."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import families, machine, measured_code, serving, show, truth
from benchmarks.apply import RUNS as RUN_BY_APPLY
from benchmarks.measured_code import CHANGED_MEANWHILE, SEVERAL_VERSIONS, Sources, changes_since, merged, source_digest

SCORE = '''"""Scores."""
import toy_tools.depth

LIMIT = 3
"""Of scores."""


def score(x):
    """Twice x."""
    return 2 * x  # twice
'''
TREE = {
    "toy_search/__init__.py": "",
    "toy_search/score.py": SCORE,
    "toy_search/unused.py": "UNUSED = 1\n",
    "toy_tools/__init__.py": "",
    "toy_tools/depth.py": "DEPTH = 4\n",
    "toy_tools/late.py": "from toy_tools import deeper\n",
    "toy_tools/deeper.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import toy_search.unused\n",
    "toy_server/start.py": "def start():\n    import toy_tools.late\n",
    ".venv/lib/toy_search/score.py": "",
    "README.md": "Toys.\n",
}
RAN = {"toy_search/__init__.py", "toy_search/score.py", "toy_tools/__init__.py", "toy_tools/depth.py"}
Show = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of toys, one module of which this process has imported; what it writes lies there too."""
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(machine, "RESULTS_DIR", tmp_path / "results")
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        monkeypatch.delitem(sys.modules, name)
    __import__("toy_search.score")
    return tmp_path


@pytest.fixture
def shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Shows results of the toys, with the Makefile of this repository."""
    here = measured_code.changes_since
    monkeypatch.setattr(measured_code, "changes_since", lambda code: here(code, root))
    command = typer.Typer()
    command.command()(show.main)
    return lambda *names: CliRunner().invoke(command, list(names))


def write(root: Path, name: str = "search", **summary: object) -> None:
    """A result that was measured with the toys that this process imported."""
    sources = Sources(root)
    document = {
        "machine": {"cpu": "abacus", "cores": 2, "gpus": [], "torch": "2.13.0", "transformers": "5.23.0"},
        "commit": "0123456789abcdef",
        "measured_at": "2026-11-28T10:00:00+00:00",
        "code": sources.digests(sources.imported()),
        "summary": summary,
        "rows": [],
    }
    (root / "results").mkdir(exist_ok=True)
    (root / "results" / f"{name}.json").write_text(json.dumps(document))


def test_a_result_of_the_code_as_it_is_is_shown(root: Path, shown: Show) -> None:
    write(root, worst=1.0521234, held=True, at={"0.2": 0.5, "curve": [1, 2]}, curve=[1, 2])
    result = shown()
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("search: 2026-11-28T10:00:00+00:00, commit 0123456789ab, abacus, 2 cores, torch 2.13.0")
    assert [line.split() for line in lines[1:]] == [["worst", "1.052"], ["held", "True"], ["at.0.2", "0.5"]]


def test_changed_code_is_refused_and_named(root: Path, shown: Show) -> None:
    write(root, worst=1.0)
    write(root, "truth-quick", worst=2.0)
    (root / "toy_search/score.py").write_text(SCORE.replace("2 * x", "3 * x"))
    (root / "toy_tools/depth.py").unlink()
    result = shown("search")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "search: not shown" in result.stderr
    assert "commit 0123456789abcdef" in result.stderr
    assert "  toy_search/score.py has changed\n  toy_tools/depth.py is gone\n" in result.stderr
    assert result.stderr.endswith("make bench-search\n")
    assert shown("truth-quick").stderr.endswith("python -m benchmarks.truth\n")


def test_one_stale_result_hides_no_other(root: Path, shown: Show) -> None:
    write(root, "apply", ratio=2.0)
    write(root, "search", worst=1.0)
    path = root / "results/search.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": {"toy_search/score.py": "0" * 16}}))
    result = shown()
    assert result.exit_code == 1
    assert result.stdout.startswith("apply: ")
    assert "toy_tools/depth.py" not in result.stderr
    assert "toy_search/score.py has changed" in result.stderr


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("toy_search/score.py", SCORE.replace("# twice", "# by two").replace("Twice x", "x + x").replace("Of sc", "c")),
        ("toy_search/score.py", "# Toys.\n\n" + SCORE.replace("2 * x", "(2 * x)")),
        ("toy_search/unused.py", "UNUSED = 2\n"),
        ("README.md", "Other toys.\n"),
    ],
)
def test_comments_docstrings_and_what_did_not_run_change_nothing(root: Path, shown: Show, file: str, text: str) -> None:
    write(root, worst=1.0)
    assert (root / file).read_text() != text
    (root / file).write_text(text)
    assert shown("search").exit_code == 0


def test_a_result_from_before_hashes_is_refused(root: Path, shown: Show) -> None:
    write(root, "predictor", worst=1.0)
    path = root / "results/predictor.json"
    document = json.loads(path.read_text())
    del document["code"], document["measured_at"]
    path.write_text(json.dumps(document))
    result = shown()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "measured before hashes were kept" in result.stderr
    assert "make bench-predictor" in result.stderr


def test_an_unknown_name_is_an_error_that_says_what_there_is(root: Path, shown: Show) -> None:
    write(root, worst=1.0)
    result = shown("search", "serach")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "(search): serach" in " ".join(result.stderr.replace("│", "").split())


def test_what_ran_is_what_was_imported_and_what_started_modules_import(root: Path) -> None:
    sources = Sources(root)
    assert sources.imported() == RAN
    late = {"toy_server/start.py", "toy_tools/__init__.py", "toy_tools/late.py", "toy_tools/deeper.py"}
    assert sources.reached(["toy_server.start"]) == late
    with pytest.raises(ValueError, match=r"toy_server\.stop"):
        sources.reached(["toy_server.stop"])


def test_a_checkout_that_moves_on_while_it_is_measured_makes_the_result_stale(root: Path) -> None:
    sources = Sources(root)
    (root / "toy_search/score.py").write_text(SCORE + "# the end\n")
    (root / "toy_tools/depth.py").write_text("DEPTH = 5\n")
    code = sources.digests(RAN)
    assert code["toy_search/score.py"] == source_digest(SCORE.encode())
    assert code["toy_tools/depth.py"] == CHANGED_MEANWHILE
    assert changes_since(code, root) == {"toy_tools/depth.py": CHANGED_MEANWHILE}


def test_parts_that_were_measured_with_different_code_are_stale_together(root: Path) -> None:
    sources = Sources(root)
    now = sources.digests(["toy_search/score.py", "toy_tools/depth.py"])
    earlier = {"toy_tools/depth.py": "0" * 16, "toy_tools/__init__.py": source_digest(b"")}
    code = merged([now, earlier])
    assert changes_since(code, root) == {"toy_tools/depth.py": SEVERAL_VERSIONS}
    assert code["toy_tools/__init__.py"] == earlier["toy_tools/__init__.py"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("x = 1", "x = True"), ("x = 1", "x = 1.0"), ("x = 'a'", "x = 'b'"), ("return_ = None", "return_ = 0")],
)
def test_digests_tell_values_apart(one: str, other: str) -> None:
    assert source_digest(one.encode()) != source_digest(other.encode())


def test_a_result_carries_the_code_of_this_repository(root: Path) -> None:
    path = machine.write_results("made-up", {"figure": 1.0}, [], runs=["lop.commands.db"])
    code = json.loads(path.read_text())["code"]
    assert {"benchmarks/machine.py", "pruning/atomic_file.py", "lop/commands/db.py"} <= code.keys()
    assert "storage/migration.py" in code, "db imports it inside of a function"
    assert not [file for file in code if file.startswith(".venv") or not file.endswith(".py")]
    assert changes_since(code) == {}


def test_what_benchmarks_start_is_there() -> None:
    runs = (*RUN_BY_APPLY, *families.RUNS, *serving.RUNS, *truth.RUNS)
    reached = measured_code.AT_START.reached(runs)
    assert {"service/app.py", "pruning/cutting/surgery.py", "tests/tiny_models/builders.py"} <= reached


def test_the_page_of_figures_says_which_commits_they_are_of() -> None:
    page = (measured_code.ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for path in (Path(machine.__file__).parent / "results").glob("*.json"):
        commit = json.loads(path.read_text(encoding="utf-8"))["commit"]
        assert commit[:7] in page, f"{path.name} is of {commit}"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("axes-partial", "make bench-axes"),
        ("second-order", "make bench-second-order"),
        ("second-order-partial", "make bench-second-order"),
        ("latency", "python -m benchmarks.latency"),
    ],
)
def test_what_measures_a_result_again(name: str, command: str) -> None:
    assert show.command_for(name) == command
