"""Folders whose vocabulary did not come along: transformers makes an empty tokenizer; no command measures with it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lop.cli import main
from storage.contract import Repository
from storage.records import JobStatus
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint
from tests.tiny_models.hub_folders import save_hub_folder

Run = Callable[..., tuple[int, str]]
REFUSED = "the folder must hold the vocabulary of the model's tokenizer"
ROUNDS = ("--num-levels", 6, "--round-targets", 1, "--round-evaluations", 2)
SEARCH = ("-s", 0.3, "-s", 0.6, "-n", 6, "--num-levels", 6)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `lop ARGUMENTS`; returns exit code and the last line of stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setenv("LOP_DATABASE_URL", f"sqlite:///{tmp_path / 'lop.db'}")
        monkeypatch.setattr(sys, "argv", ["lop", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return int(ended.value.code or 0), (err.strip().splitlines() or [""])[-1]

    return call


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "data.json"
    said = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "red seven"}]
    path.write_text(json.dumps([{"id": index, "conversations": said} for index in range(4)]))
    return path


def edit(path: Path, **changes: Any) -> None:
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def without_vocabulary(folder: Path, tokenizer_class: str = "LlamaTokenizer") -> Path:
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class, backend=None)
    return folder


def repository_of(tmp_path: Path) -> Repository:
    return open_repository(f"sqlite:///{tmp_path / 'lop.db'}", create=True)


@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizer", "GemmaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer"])
def test_a_model_is_not_registered_and_not_evaluated(
    run: Run, questions: Path, tmp_path: Path, tokenizer_class: str
) -> None:
    folder = without_vocabulary(save_tiny_checkpoint(tmp_path / "model", "llama"), tokenizer_class)
    for words in (("model", "add", "mine", folder, "--data", questions), ("evaluate", folder, "--data", questions)):
        code, line = run(*words)
        assert code == 2
        assert line.startswith(f"error: {REFUSED} (got {folder}: ")
        assert "284 embeddings; vocabulary files: none). Copy or download tokenizer.json" in line
    repository = repository_of(tmp_path)
    assert repository.list_models() == []


@pytest.fixture
def registered(run: Run, questions: Path, tmp_path: Path) -> Path:
    """A model of which samples and a queued search are stored, and whose vocabulary has gone since."""
    folder = save_tiny_checkpoint(tmp_path / "model", "llama")
    assert run("model", "add", "mine", folder, "--weights-only")[0] == 0
    assert run("search", "-m", "mine", "-d", questions, "-s", 0.5, *SEARCH, "-n", 30)[0] == 0
    assert run("search", "-m", "mine", "-d", questions, *SEARCH, "-n", 60, "--seed", 1, "--queue")[0] == 0
    return without_vocabulary(folder)


def test_no_other_command_measures_with_it(
    run: Run, registered: Path, questions: Path, tmp_path: Path, short_training: None
) -> None:
    repository = repository_of(tmp_path)
    samples = repository.count_samples("mine")
    of = ("-m", "mine", "-d", questions)
    for words in (
        ("search", *of, *SEARCH, "--seed", 2, "--method", "random"),
        ("compare", *of, "-s", 0.5),
        ("model", "measure", "mine", "--data", questions, "--kind", "gradients"),
        ("model", "measure", "mine", "--data", questions, "--kind", "activations"),
        ("train", "-m", "mine", "--data", questions, "--rounds", 1, *ROUNDS),
    ):
        code, line = run(*words)
        assert (words[0], code) == (words[0], 2)
        assert line.startswith(f"error: {REFUSED} (got {registered}: ")
    run("worker", "--once")
    (queued,) = repository.list_jobs(status=JobStatus.FAILED)
    assert REFUSED in str(queued.error)
    assert repository.count_samples("mine") == samples


def test_half_of_a_vocabulary(run: Run, questions: Path, tmp_path: Path) -> None:
    """Tokens without merges are letters."""
    folder = save_tiny_checkpoint(tmp_path / "model", "llama")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    without_vocabulary(folder, "Qwen2Tokenizer")
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    code, line = run("model", "add", "mine", folder, "--data", questions)
    assert code == 2
    assert line.startswith("error: the folder must hold the model's processor")
    assert "merges" in line


def test_a_processor_without_its_vocabulary(run: Run, questions: Path, tmp_path: Path) -> None:
    folder = without_vocabulary(save_hub_folder(tmp_path / "qwen", "Qwen2-VL"), "Qwen2Tokenizer")
    code, line = run("model", "add", "mine", folder, "--data", questions)
    assert code == 2
    assert REFUSED in line


def test_a_vocabulary_of_another_model(run: Run, questions: Path, tmp_path: Path) -> None:
    """Half a vocabulary is enough for no model: the rest of the embeddings could never be used."""
    folder = save_tiny_checkpoint(tmp_path / "model", "llama")
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["merges"] = []
    document["model"]["vocab"] = {name: n for name, n in document["model"]["vocab"].items() if n < 100}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    code, line = run("model", "add", "mine", folder, "--data", questions)
    assert code == 2
    assert "100 tokens for 284 embeddings; vocabulary files: tokenizer.json" in line


def test_an_adapter_beside_the_weights_is_said(run: Run, questions: Path, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "model", "llama")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    for words in (("model", "add", "mine", folder, "--weights-only"), ("evaluate", folder, "-d", questions)):
        with pytest.MonkeyPatch.context() as patch:
            said: list[str] = []
            patch.setattr("lop.console.console.warn", said.append)
            assert run(*words)[0] == 0
        assert any("adapter_config.json is not applied" in line for line in said)
