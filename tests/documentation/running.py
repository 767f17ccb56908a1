"""Runs what a page says to type, on a tiny model and the test's own database: servers and workers in threads."""

import gc
import shlex
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import uvicorn
from typer.testing import CliRunner

import lop
from lop.cli import app
from service.worker import Worker, WorkerOptions
from tests.documentation.blocks import Block, commands_of
from tests.documentation.commands_check import read_curl, split_inner

NOT_RUN = {
    "make": "sets up this checkout, tests it, or builds the site",
    "pip": "changes the environment of these tests",
    "docker": "there is no Docker engine; tests/service/test_compose.py runs the commands of its services",
    "vllm": "has an environment of its own; `make test-vllm`",
    "ollama": "is not installed",
    "kubectl": "there is no cluster; tests/service/test_kubernetes.py holds the manifests to their schema",
    "lop search": "takes minutes as it stands; tests/lop/commands/test_search_command.py, and a page's jobs search",
    "lop train": "takes minutes as it stands; tests/lop/workflows/test_workflow.py, and a page's jobs train",
    "lop compare": "takes minutes as it stands; tests/lop/workflows/test_workflow.py",
    "lop recover": "takes an hour as it stands; tests/lop/commands/test_recover_command.py",
    "lop data answer": "the tiny model says nothing; tests/lop/commands/test_data_command.py",
    "lop device profile": "takes minutes as it stands; tests/lop/commands/test_device_command.py",
    "--engine ray": "takes a Ray cluster; tests/engines/ray",
    "--space all": "takes a predictor of that space; tests/lop/workflows/test_spaces.py",
    "--space all,bits": "takes a search of that space; tests/lop/workflows/test_bits_in_plans.py",
    "--quantise Q4_K_M": "takes llama-cpp-python, which is compiled; tests/pruning/cutting/gguf",
    "--tp-size 2 --round-to 64": "the tiny model has too few units; tests/service/test_plans.py",
}
"""Commands that are only read, by the words that tell them, and why. What is typed in a container is run, though."""

FOREVER = ("serve", "worker")
"""Commands that run until they are stopped."""


class PageRun:
    """One page, from top to bottom.

    Attributes:
        places: what is put in the place of a page's words, in this order; addresses of `lop serve` and a first key are
            added as they are made.
    """

    def __init__(self, places: dict[str, str], begun: list[uvicorn.Server | Worker]) -> None:
        self.places = dict(places)
        self._begun = begun
        self._names: dict[str, Any] = {}
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []

    def run(self, block: Block) -> list[str]:
        """Run all of a block that is to be run; returns it as it stands in the page.

        Fails for what fails, and for a command that is neither known here nor named in NOT_RUN.
        """
        if block.language == "python":
            exec(compile(self._here(block.text), str(block), "exec"), self._names)  # noqa: S102 (our own pages)
            return [block.text]
        commands = commands_of(block) if block.language == "sh" else []
        return [shlex.join(command.words) for command in commands if command.words and self._type(command.words, block)]

    def close(self) -> None:
        """Stop what runs; fails if any of it has failed."""
        for client in self._names.values():
            if isinstance(client, lop.Client):
                client.close()
        for running in self._begun:
            if isinstance(running, Worker):
                running.stop()
            else:
                running.should_exit = True
        for thread in self._threads:
            thread.join()
        gc.unfreeze()  # `lop serve` freezes what there is for the rest of its process
        assert self._failures == []

    def _here(self, text: str) -> str:
        for name, place in self.places.items():
            text = text.replace(name, place)
        return text

    def _type(self, words: list[str], block: Block) -> bool:
        """Whether the command was run."""
        inner = words[5:] if words[:4] == ["docker", "compose", "run", "--rm"] else split_inner(words)[1]
        if inner:
            return self._type(inner, block)
        typed = shlex.join(words)
        if any(f" {told} " in f" {typed} " for told in NOT_RUN):
            return False
        program, *arguments = (self._here(word) for word in words)
        failure = f"{block}: {typed}"
        match program:
            case "lop" if arguments[0] in FOREVER:
                self._start(arguments, failure)
            case "lop":
                self._run_to_its_end(arguments, failure)
            case "curl":
                _ask(arguments, failure)
            case "zip":
                _pack(arguments)
            case _:
                raise AssertionError(f"{failure}: neither run nor in NOT_RUN")
        return True

    def _run_to_its_end(self, arguments: list[str], failure: str) -> None:
        if arguments == ["key", "revoke", "ID"]:
            arguments = ["key", "revoke", self.places["lop_..."].split("_")[1]]
        outcome = CliRunner().invoke(app, arguments)
        assert outcome.exit_code == 0, f"{failure}: {outcome.exception}\n{outcome.output}"
        if arguments[:2] == ["key", "create"]:
            self.places.setdefault("lop_...", outcome.stdout.strip())

    def _start(self, arguments: list[str], failure: str) -> None:
        """Run the command in a thread until `close`; returns when it answers or waits for jobs."""
        if arguments[0] == "serve":
            arguments = [*arguments, "--port", "0"]  # the last one counts
        command = typer.main.get_command(app)

        def work() -> None:
            try:
                command.main(args=arguments, prog_name="lop", standalone_mode=False)
            except Exception as error:  # noqa: BLE001 - told where it is waited for, or at the end
                self._failures.append(error)

        count = len(self._begun)
        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()
        while len(self._begun) == count or not getattr(self._begun[count], "started", True):
            assert thread.is_alive(), f"{failure}: {self._failures.pop()}"
            time.sleep(0.01)
        running = self._begun[count]
        if isinstance(running, Worker):
            return
        port = running.servers[0].sockets[0].getsockname()[1]
        for host in ("127.0.0.1", "localhost", "server"):
            self.places[f"{host}:8000"] = f"127.0.0.1:{port}"


@contextmanager
def page_run(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[PageRun]:
    """A page at work; what it has started is stopped afterwards."""
    begun: list[uvicorn.Server | Worker] = []

    class SeenServer(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            begun.append(self)

    class SeenWorker(Worker):
        def __init__(self, *of: Any, options: WorkerOptions, **more: Any) -> None:
            super().__init__(*of, options=replace(options, poll_seconds=0.05), **more)
            begun.append(self)

    monkeypatch.setattr("uvicorn.Server", SeenServer)
    monkeypatch.setattr("service.worker.Worker", SeenWorker)
    # Their handlers would write to the standard error of this test for ever.
    for module in ("service.logs", "service.server"):
        monkeypatch.setattr(f"{module}.configure_logging", lambda _level, _form: None)
    running = PageRun(places, begun)
    try:
        yield running
    finally:
        running.close()


def _ask(arguments: list[str], failure: str) -> None:
    curl = read_curl(arguments)
    content = None if curl.file is None else Path(curl.file).read_bytes()
    answer = httpx.request(
        curl.method, f"http://{curl.url}", headers=curl.headers, content=content or curl.body, timeout=60
    )
    assert answer.is_success, f"{failure}: {answer.text}"


def _pack(arguments: list[str]) -> None:
    """`zip -qr ARCHIVE FILE-OR-FOLDER...`, which not every machine has."""
    options, archive, *members = arguments
    assert options == "-qr"
    with zipfile.ZipFile(archive, "w") as packed:
        for member in map(Path, members):
            for path in [member, *sorted(member.rglob("*"))]:
                packed.write(path)
