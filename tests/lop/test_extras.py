"""Each extra installs what its commands need, and the client alone fetches a plan: the rest of the packages is hidden.

One plan's way through four installations: a server, a laptop, and where its model is cut and looked at.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pruning.missing_packages import EXTRAS
from tests.installed_alone import hidden_modules, needed_distributions

FETCH = """
import lop, sys
from pathlib import Path
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking
with lop.Client(sys.argv[1]) as client:
    plan = client.plan(model="tiny", sparsity=0.4)
    ranking = Ranking.from_bytes(client.ranking(plan))
assert ranking.sha256 == plan.ranking.sha256 and ranking.fingerprint == plan.model.fingerprint
assert PruningPlan.from_json(plan.to_json()) == plan
print(plan.plan_id)
"""
REFUSED = """
import lop
for use in (lambda: lop.load_pruned, lambda: lop.register_transformers, lambda: lop.apply_plan(None, None)):
    try:
        use()
    except lop.LopError as error:
        assert isinstance(error, ImportError)
        print(error)
"""


def alone(extras: str, *words: object, expected: int = 0) -> subprocess.CompletedProcess[str]:
    """The finished process of `tests.installed_alone`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.installed_alone", extras, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == expected, done.stderr
    return done


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a server that has the extra `server` alone."""
    log = tmp_path / "server.log"
    words = ("serve", "--port", "0", "--database", database)
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "tests.installed_alone", "server", *words], stderr=stderr)
    try:
        while (found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        process.kill()
        process.wait()


def test_a_plan_goes_from_a_server_over_a_laptop_to_a_checkpoint(server: str, checkpoint: Path, tmp_path: Path) -> None:
    plan_id = alone("", "-c", FETCH, server).stdout.strip()
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    alone("", "plan", "--model", "tiny", "-s", "0.4", "--url", server, "--out", plan)
    assert json.loads(plan.read_text())["plan_id"] == plan_id
    words = ("apply", "--plan", plan, "--model", checkpoint, "--out", out)
    code = (
        f"import sys, lop.cli as cli\nfor words in ({[*map(str, words)]}, {[*map(str, words), '--check']}, "
        f"{['inspect', str(out), '--json']}):\n    sys.argv = ['lop', *words]\n    try:\n        cli.main()\n"
        "    except SystemExit as end:\n        assert not end.code, words"
    )
    printed = alone("apply", "-c", code).stdout.splitlines()
    assert json.loads(printed[-1])["plan"]["plan_id"] == plan_id


def test_registering_needs_the_extra_search(checkpoint: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'lop.db'}"
    alone("search", "model", "add", "tiny", checkpoint, "--weights-only", "--database", database)


MISSING = {
    "apply --plan p --model m --out o": "apply",
    "inspect m": "apply",
    "evaluate m --data d": "apply",
    "export gguf --model m --out o": "apply",
    "serve": "server",
    "plan --model tiny -s 0.5": "server",
    "db upgrade": "server",
    "search --model tiny --data d -s 0.5": "search",
    "train --model tiny": "search",
    "model list": "search",
}
"""What a command of the client alone asks for."""

RUN_ALL = """
import sys
from lop.cli import main
for words in sys.argv[1:]:
    sys.argv = ["lop", *words.split()]
    try:
        main()
    except SystemExit as end:
        assert end.code == 2, words
"""


def test_what_is_missing_is_named_with_its_command() -> None:
    errors = alone("", "-c", RUN_ALL, *MISSING).stderr.splitlines()
    named = [re.search(r'which is not installed.*pip install "lop-service\[(.+)\]"', line) for line in errors]
    assert [match and match[1] for match in named] == [*MISSING.values()]


def test_python_names_the_command_too() -> None:
    printed = alone("", "-c", REFUSED).stdout.splitlines()
    assert len(printed) == 3
    assert all('pip install "lop-service[apply]"' in line for line in printed)


def test_a_database_without_its_driver() -> None:
    words = ("serve", "--database", "postgresql://lop@127.0.0.1:1/lop")
    assert 'pip install "lop-service[postgres]"' in alone("server", *words, expected=2).stderr


def test_each_extra_installs_the_modules_that_name_it() -> None:
    for extra in EXTRAS.keys() - {"llama-cpp"}:  # which no environment of the tests has
        assert not hidden_modules([extra]) & {*EXTRAS[extra]}


def test_the_client_is_light() -> None:
    assert {"numpy", "httpx", "pydantic", "safetensors", "typer"} <= needed_distributions([])
    assert len(needed_distributions([])) < 30
    assert {*EXTRAS["search"], *EXTRAS["server"], "psycopg", "ray", "matplotlib"} <= hidden_modules([])


def test_readme_installs_what_its_own_commands_need() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    _, commands, _ = readme.partition("## With your own model")[2].split("```", 2)
    installed = re.search(r"pip install .*'\.\[(.+)\]'", commands)
    assert installed is not None
    needed = ["search", "server", *(["plots"] if "--plot" in commands else [])]
    hidden = hidden_modules(installed[1].split(","))
    assert not hidden & {module for extra in needed for module in EXTRAS[extra]}
