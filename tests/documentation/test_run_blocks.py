"""README, the tutorial and four how-to pages, run from top to bottom in a folder each, on a tiny model, beside a real
server on a socket.

RUN: every command of `lop` that is not in LONG or TOO_LARGE, every `curl`, every block of Python that asks for no job.
ONLY READ, by test_blocks.py: what is in LONG and TOO_LARGE; `pip`, `make`, `docker compose`; variables that a block
sets, since all runs on the test's own database; the pages that are not here. docs/index.md says so.
Put in the place of names: the tiny model's folder for the checkpoint's, the port that the server got for 8000.
"""

import shlex
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from transformers import PreTrainedModel
from typer.testing import CliRunner

import lop
from lop.cli import app
from service.app import create_app
from service.server import _listen
from service.settings import Settings
from storage.sql_repository import open_repository
from tests.documentation.blocks import ROOT, Block, blocks_of, commands_of
from tests.documentation.commands_check import read_curl
from tests.tiny_models import save_tiny_checkpoint, write_conversations

REGISTERED = "lop model add my-llava CHECKPOINT --data calibration.json"
PLANNED = "lop plan --model my-llava --sparsity 0.4 --out plan.json"
APPLIED = "lop apply --plan plan.json --model CHECKPOINT --out pruned"
CUT = ("lop model add", "lop plan", "lop apply", "lop evaluate")
RUN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "README.md": ((), (*CUT, "import lop")),
    "docs/tutorial.md": ((), (*CUT, "import lop")),
    "docs/howto/own-model.md": ((), ("lop data check", *CUT)),
    "docs/howto/device.md": ((REGISTERED,), ("lop device list", "lop plan")),
    "docs/howto/better-answers.md": ((REGISTERED, PLANNED), ("lop apply", "lop model add")),
    "docs/howto/runtimes.md": ((REGISTERED, PLANNED, APPLIED), ("lop quantise", "lop sparsify")),
}
"""Of each page, what was done before it begins, and what it must have run."""
LONG = ("search", "train", "compare", "serve", "worker", "data answer", "recover", "device profile")
"""Commands that take too long here, or for ever: each has tests of its own in tests/lop."""
TOO_LARGE = ("--tp-size 2 --round-to 64", "--space all", "--space all,bits", "--quantise Q4_K_M")
"""What a tiny model has too few units for, what takes a search of its own, and a package that is compiled."""

CHECKPOINT = "/models/llava-1.5-7b-hf"
DATA = ("calibration", "other", "validation")


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
def workspace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Where a page is run, with a server beside it; gives what is put in the place of the page's names."""
    torch.set_num_threads(1)
    shutil.copytree(made / "data", tmp_path, dirs_exist_ok=True)
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "model").symlink_to(made / "model")
    (tmp_path / "reference" / "data").symlink_to(made / "data")
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'lop.db'}"
    for name in ("LOP_URL", "LOP_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOP_DATABASE_URL", url)
    monkeypatch.setenv("LOP_DATA_STORE", str(tmp_path / "store"))
    for name in ("post_init", "_load_pretrained_model", "_finalize_model_loading"):  # as before register_transformers()
        monkeypatch.setattr(PreTrainedModel, name, PreTrainedModel.__dict__[name])
    open_repository(url, create=True).close()
    server = uvicorn.Server(uvicorn.Config(create_app(Settings(database_url=url)), log_config=None))
    with _listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        here = f"127.0.0.1:{listener.getsockname()[1]}"
        yield {CHECKPOINT: str(made / "model"), "127.0.0.1:8000": here, "localhost:8000": here}
        server.should_exit = True
        thread.join()


def run_block(block: Block, places: dict[str, str], names: dict[str, Any]) -> list[str]:
    """Run what is to be run of a block; returns it."""
    text = block.text
    for name, place in places.items():
        text = text.replace(name, place)
    if block.language == "python" and ".search(" not in text:
        exec(compile(text, str(block), "exec"), names)  # noqa: S102 (our own pages)
        return [block.text]
    done = []
    for command in commands_of(Block(block.page, block.line, "sh", text)) if block.language == "sh" else []:
        program, *words = command.words or [""]
        typed = shlex.join(command.words)
        if program == "lop" and _is_run(words):
            outcome = CliRunner().invoke(app, words)
            assert outcome.exit_code == 0, f"{block}: {typed}: {outcome.exception}\n{outcome.output}"
        elif program == "curl":
            curl = read_curl(words)
            content = None if curl.file is None else Path(curl.file).read_bytes()
            answer = httpx.request(
                curl.method, f"http://{curl.url}", headers=curl.headers, content=content or curl.body, timeout=60
            )
            assert answer.is_success, f"{block}: {typed}: {answer.text}"
        else:
            continue
        done.append(typed)
    return done


def _is_run(words: list[str]) -> bool:
    text = f"{' '.join(words)} "
    is_long = text.startswith(tuple(f"{name} " for name in LONG))
    return not is_long and not any(f" {part} " in f" {text}" for part in TOO_LARGE)


@pytest.mark.parametrize("name", RUN, ids=lambda name: Path(name).stem)
def test_a_page_runs_from_top_to_bottom(name: str, workspace: dict[str, str]) -> None:
    before, needs = RUN[name]
    names: dict[str, Any] = {}
    for command in before:
        assert run_block(Block(name, 0, "sh", command.replace("CHECKPOINT", CHECKPOINT)), workspace, names)
    try:
        done = [command for block in blocks_of(ROOT / name) for command in run_block(block, workspace, names)]
    finally:
        for client in names.values():
            if isinstance(client, lop.Client):
                client.close()
    assert [needed for needed in needs if not any(needed in command for command in done)] == []


def test_what_a_server_refuses_fails(workspace: dict[str, str]) -> None:
    block = Block(
        "page.md", 1, "sh", "curl -X POST localhost:8000/v1/plans -H 'content-type: application/json' -d '{}'"
    )
    with pytest.raises(AssertionError, match=r"page\.md:1: curl .*422|model"):
        run_block(block, workspace, {})
