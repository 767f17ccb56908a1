"""Every fenced block of README and docs says what is so.

READ, all of them: commands of `lop` are parsed by the real commands, with the types of their options, sizes and times
too; `pip` by the extras of pyproject.toml, `make` by the Makefile, `docker compose` and `kubectl` by the files that
they name, `curl` by the paths of the OpenAPI document, variables by what the code reads. Python is compiled, and every
import, name, attribute and argument is looked for. JSON is parsed. Words of programs that are not ours (`vllm`,
`ollama`, `zip`) are not read. What no test knows how to read fails, and so does a command outside of a block.

RUN, in README, the tutorial, five how-to pages, jobs and operating: see test_run_blocks.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pruning.planning.plan import PlanLayer
from tests.documentation.blocks import LANGUAGES, PAGES, ROOT, Block, blocks_of, commands_of, find_blocks, prose_of
from tests.documentation.commands_check import check_command
from tests.documentation.python_names import check_python

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
_COMMAND = re.compile(r"^ {4,}(lop|pip|curl|make|docker|kubectl|python) \S")
LONGEST_LINE = 130


def check(block: Block, names: dict[str, Any]) -> None:
    """Fails with the place of the block. `names` are those that the page's Python has defined so far."""
    try:
        match block.language:
            case "sh":
                for command in commands_of(block):
                    check_command(command)
            case "python":
                check_python(block.text, names)
            case "json":
                document = json.loads(block.text)
                for layer in document.get("layers", []):
                    PlanLayer.model_validate(layer)
    except Exception as error:
        raise AssertionError(f"{block}: {error}") from error


def test_every_block_says_what_it_is_in() -> None:
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []
    assert {block.language for block in BLOCKS} == set(LANGUAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_to_type(page: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        check(block, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_stand_in_blocks(page: Path) -> None:
    assert [number for number, line in prose_of(page) if _COMMAND.match(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_are_short(page: Path) -> None:
    lines = [(number, len(line)) for number, line in prose_of(page) if not re.match(r" *(\| |!\[)", line)]
    assert [(number, length) for number, length in lines if length > LONGEST_LINE] == []


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("sh", "lop plan --model m --sparsty 0.3", "sparsty"),
        ("sh", "lop plann --model m", "plann"),
        ("sh", "lop plan --model m --sparsity half", "number"),
        ("sh", "lop plan --model m --memory 6GiBs", "a size"),
        ("sh", "lop plan --sparsity 0.3", "model"),
        ("sh", "LOP_KEYS=1 lop serve", "LOP_KEYS"),
        ("sh", "cd x && lop serve", "cd"),
        ("sh", "lop serve | tee log", r"\|"),
        ("sh", 'pip install "lop-service[serve]"', "extra serve"),
        ("sh", "make demos", "demos"),
        ("sh", "python -m benchmarks.nothing", "no module"),
        ("sh", "curl localhost:8000/v1/plan", "/v1/plan"),
        ("sh", "curl -X DELETE localhost:8000/v1/plans", "DELETE"),
        ("sh", "docker compose run --rm migrat lop db upgrade", "migrat"),
        ("sh", "docker compose exec workers lop db check", "no workers"),
        ("sh", "docker compose exec worker lop db chek", "chek"),
        ("sh", "docker tag lop lop:before", "no image lop"),
        ("sh", "docker push lop-service:latest", "the manifests name"),
        ("sh", "kubectl -n lop run", "kubectl run"),
        ("sh", "kubectl -n lop exec deployment/lop-workers -- lop key list", "lop-workers"),
        ("sh", "kubectl -n lop exec deployment/lop-worker -- lop key creat", "creat"),
        ("sh", "kubectl -n lop exec deployment/lop-worker", "after --"),
        ("python", "import lop\nlop.load_prunned('x')", "load_prunned"),
        ("python", "import lop\nlop.Client('http://x').plan(model='m', sparsty=0.3)", "sparsty"),
        ("python", "import lop\nplan = lop.Client('http://x').plan(model='m', sparsity=0.3)\nplan.layer", "layer"),
        ("python", "import lop\np = lop.Client('http://x').plan(model='m', sparsity=0.3)\np.achieved.bytes", "bytes"),
        ("python", "import lop\nlop.Client('http://x').search(model='m', data='d')", "'sparsities'"),
        ("python", "from lop import Clients", "Clients"),
        ("python", "print(plan)", "plan"),
        ("python", "plan = (", "never closed"),
        ("json", '{"layers": [{"index": 3, "fnn": {"units": 8}}]}', "fnn"),
        ("json", '"layers": []', "Extra data"),
    ],
)
def test_a_mistake_is_found(language: str, text: str, found: str) -> None:
    (block,) = find_blocks(f"Text.\n\n```{language}\n{text}\n```\n", "page.md")
    with pytest.raises(AssertionError, match=rf"page\.md:3: (?s:.*){found}"):
        check(block, {})
