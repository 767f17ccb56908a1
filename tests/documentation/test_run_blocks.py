"""README, the tutorial, five how-to pages and those of jobs and operating, run from top to bottom in a folder each, on
a tiny model.

RUN: every command of `lop` that is not in NOT_RUN (running.py), those typed in a container included; every `curl` and
`zip`; all Python. `lop serve` and `lop worker` run in threads until the page ends, and the page's requests and jobs are
theirs.
ONLY READ, by test_blocks.py: what is in NOT_RUN; variables that a block sets, since all runs on the test's own
database; the pages that are not here. docs/index.md says so.
Put in the place of names: the tiny model's folder for the checkpoint's, the port that the server got for 8000, the
first key that the page makes for `lop_...`, SQLite for the new database, and few evaluations for a search's default.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from storage.sql_repository import open_repository
from tests.documentation.blocks import PAGES, ROOT, Block, blocks_of, commands_of
from tests.documentation.running import NOT_RUN, PageRun, page_run
from tests.tiny_models import save_tiny_checkpoint, write_conversations

REGISTERED = "lop model add my-llava CHECKPOINT --data calibration.json"
PLANNED = "lop plan --model my-llava --sparsity 0.4 --out plan.json"
WORKER = "lop worker --model-roots /models"
SERVED = ("lop serve", WORKER, ".search(", "client.plan(")
APPLIED = "lop apply --plan plan.json --model CHECKPOINT --out pruned"
CUT = ("lop model add", "lop plan", "lop apply", "lop evaluate")
RUN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "README.md": ((WORKER,), (*CUT, "import lop", "lop serve", ".search(")),
    "docs/tutorial.md": ((), (*CUT, "import lop", "lop serve")),
    "docs/howto/own-model.md": ((), ("lop data check", *CUT)),
    "docs/howto/device.md": ((REGISTERED,), ("lop device list", "lop plan")),
    "docs/howto/better-answers.md": ((REGISTERED, PLANNED), ("lop apply", "lop model add")),
    "docs/howto/runtimes.md": ((REGISTERED, PLANNED, APPLIED), ("lop quantise", "lop sparsify")),
    "docs/howto/shared-service.md": ((REGISTERED,), (*SERVED, "lop key create", "lop job list", "lop db check")),
    "docs/jobs.md": ((REGISTERED,), (*SERVED, "zip", "curl", "lop key create", "lop key list", "lop key revoke")),
    "docs/operating.md": (
        (REGISTERED,),
        ("lop serve", "lop db backup", "lop db restore", "lop db check", "lop model remove", "docker", "kubectl"),
    ),
}
"""Of each page, what was done before it begins, and what it must have run."""

CHECKPOINT = "/models/llava-1.5-7b-hf"
DATA = ("calibration", "other", "validation")
QUICK = "sparsities=[0.3, 0.5], evaluations=6, num_levels=6, conversations=4)"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint and data under the names of the pages. Read-only."""
    folder = tmp_path_factory.mktemp("pages")
    save_tiny_checkpoint(folder / "model")
    found = write_conversations(folder / "data", 40)
    for name in DATA:
        shutil.copy(found, found.with_name(f"{name}.json"))
    return folder


@pytest.fixture
def page(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageRun]:
    """Where a page is run, in a folder of its own."""
    torch.set_num_threads(1)
    shutil.copytree(made / "data", tmp_path, dirs_exist_ok=True)
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "model").symlink_to(made / "model")
    (tmp_path / "reference" / "data").symlink_to(made / "data")
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'lop.db'}"
    for name in ("LOP_URL", "LOP_KEY", "LOP_DATA_STORE", "LOP_OUTPUT_ROOT", "LOP_MODEL_ROOTS", "LOP_ALLOWED_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOP_DATABASE_URL", url)
    monkeypatch.setenv("LOP_SECOND_ORDER", str(tmp_path / "second-order"))
    for name in ("post_init", "_load_pretrained_model", "_finalize_model_loading"):  # as before register_transformers()
        monkeypatch.setattr(PreTrainedModel, name, PreTrainedModel.__dict__[name])
    # A job that searches trains a predictor; what that is worth, other tests tell.
    monkeypatch.setattr("policy_model.training.PROBLEMS_PER_OPTION", 10)
    monkeypatch.setattr("policy_model.training.MAX_EPOCHS", 5)
    open_repository(url, create=True).close()
    places = {
        CHECKPOINT: str(made / "model"),
        "/models/qwen2.5-vl-7b": str(made / "model"),
        "/models": str(made),
        "photos": str(made / "data" / "images"),
        "/home/lop/output": str(tmp_path),
        "postgresql://lop@db/new": f"sqlite:///{tmp_path / 'new.db'}",
        ", evaluations=200)": ")",
        "sparsities=[0.3, 0.5])": QUICK,
    }
    with page_run(places, monkeypatch) as running:
        yield running


@pytest.mark.parametrize("name", RUN, ids=lambda name: Path(name).stem)
def test_a_page_runs_from_top_to_bottom(name: str, page: PageRun) -> None:
    before, needs = RUN[name]
    for command in before:
        assert page.run(Block(name, 0, "sh", command.replace("CHECKPOINT", CHECKPOINT)))
    done = [command for block in blocks_of(ROOT / name) for command in page.run(block)]
    assert [needed for needed in needs if not any(needed in command for command in done)] == []


def test_what_a_server_refuses_fails(page: PageRun) -> None:
    assert page.run(Block("page.md", 1, "sh", "lop serve")) == ["lop serve"]
    block = Block(
        "page.md", 1, "sh", "curl -X POST localhost:8000/v1/plans -H 'content-type: application/json' -d '{}'"
    )
    with pytest.raises(AssertionError, match=r"page\.md:1: curl .*422|model"):
        page.run(block)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("lop serve --host 0.0.0.0", "needs a key"),  # in the thread
        ("docker compose run --rm migrate lop key revoke none", "no key .*none"),
        ("sglang serve pruned", "neither run nor in NOT_RUN"),
    ],
)
def test_what_fails_when_it_is_run(typed: str, found: str, page: PageRun) -> None:
    with pytest.raises(AssertionError, match=rf"page\.md:1: (?s:.*){found}"):
        page.run(Block("page.md", 1, "sh", typed))


def test_all_that_is_not_run_is_on_a_page_that_is_and_the_reasons_name_tests_that_are_there() -> None:
    typed = [
        f" {' '.join(command.words)} "
        for name in RUN
        for block in blocks_of(ROOT / name)
        if block.language == "sh"
        for command in commands_of(block)
    ]
    assert [told for told in NOT_RUN if not any(f" {told} " in line for line in typed)] == []
    named = re.findall(r"tests/[\w/.]+", " ".join(NOT_RUN.values()))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_index_says_which_pages_are_run() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    run = text[text.index("are also run") - 600 : text.index("are also run")]
    linked = {f"docs/{page}" for page in re.findall(r"\]\(([\w/-]+\.md)\)", run[run.index("Those of") :])}
    assert linked | {"README.md", "docs/tutorial.md"} == set(RUN)
    assert set(RUN) < {str(page.relative_to(ROOT)) for page in PAGES}
