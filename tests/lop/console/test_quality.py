"""What reports say of quality: of a model that gives some answers exactly, and of one that gives none."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lop.cli import main
from lop.commands.evaluate import exact_match_tolerance
from lop.console.quality import NO_EXACT_MATCH, quality_cells, quality_columns
from lop.workflows.registration import register_model
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import load_conversations
from pruning.measuring.metrics import Metrics
from service.dense_metrics import dense_metrics
from storage.sql_repository import open_repository
from tests.tiny_models import save_tiny_checkpoint, write_conversations

Ask = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight conversations."""
    return write_conversations(tmp_path_factory.mktemp("short"), 8)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other ones."""
    return write_conversations(tmp_path_factory.mktemp("other"), 6, seed=1)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that gives no answer exactly, as none does that is long."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("untrained") / "model")


@pytest.fixture(scope="module")
def trained(untrained: Path, short: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has learnt answers of both files."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(untrained, folder)
    model, processor = load_model(folder), load_processor(folder)
    batches = [batch for data in (short, other) for batch in make_batches(load_conversations(data), processor)]
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        for batch in batches:
            logits = model(**batch.inputs).logits
            losses = [
                torch.nn.functional.cross_entropy(
                    logits[s.row, s.start - 1 : s.stop - 1], batch.inputs["input_ids"][s.row, s.start : s.stop]
                )
                for s in batch.spans
            ]
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run `lop`; returns stdout and stderr, each on one line."""

    def run(*arguments: object) -> tuple[str, str]:
        monkeypatch.setenv("COLUMNS", "240")
        monkeypatch.setattr(sys, "argv", ["lop", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code in (0, None), err
        return " ".join(out.split()), " ".join(err.split())

    return run


def registered(folder: Path, checkpoint: Path, data: Path) -> str:
    url = f"sqlite:///{folder / 'lop.db'}"
    with open_repository(url, create=True) as repository:
        register_model(repository, "tiny", checkpoint, load_conversations(data))
    return url


@pytest.mark.parametrize("method", ["mcts", "random"])
def test_a_search_and_a_comparison_show_what_says_something(
    ask: Ask, trained: Path, untrained: Path, short: Path, other: Path, tmp_path: Path, method: str
) -> None:
    for name, checkpoint in (("trained", trained), ("untrained", untrained)):
        (tmp_path / name).mkdir()
        common = ["-m", "tiny", "--database", registered(tmp_path / name, checkpoint, short), "-s", 0.5]
        search = ["search", *common, "-d", short, "-n", 4, "--num-levels", 3, "--method", method]
        out, _ = ask(*search, "--validation", other)
        assert ("exact match │" in out.replace("┃", "│")) == (name == "trained")
        assert ("validation exact match" in out) == (name == "trained")
        assert "validation agreement" in out
        assert (NO_EXACT_MATCH in out) == (name == "untrained")
        compare = ["compare", *common, "-d", other, "--method", method, "--method", "uniform"]
        out, _ = ask(*compare)
        assert ("exact match ┃" in out) == (name == "trained")
        assert "agreement ┃" in out
        assert (NO_EXACT_MATCH in out) == (name == "untrained")
        document = json.loads(ask(*compare, "--json")[0])
        assert (document["dense"]["kl"], document["dense"]["agreement"]) == (0.0, 1.0)
        assert (document["dense"]["accuracy"] > 0) == (name == "trained")
        assert all(0.0 < plan["agreement"] <= 1.0 for plan in document["plans"])


def test_the_dense_model_is_measured_once_whatever_searches(
    ask: Ask, untrained: Path, short: Path, tmp_path: Path
) -> None:
    database = registered(tmp_path, untrained, short)
    search = ["search", "-m", "tiny", "--database", database, "-s", 0.5, "-d", short, "-n", 4, "--num-levels", 3]
    found = json.loads(ask(*search, "--method", "random", "--json")[0])
    assert (found["dense"]["kl"], found["dense"]["agreement"]) == (0.0, 1.0)
    with open_repository(database) as repository:
        samples = repository.list_samples("tiny")
        model = repository.get_model("tiny")
        assert [s.source for s in samples] == ["random"] * 4 + ["dense"]
        measured = dense_metrics(repository, model, samples[0].calibration_id)
        assert measured is not None
        assert dataclasses.replace(measured, folds=None) == Metrics(**found["dense"])
        assert dense_metrics(repository, model, "0" * 64) is None
    assert json.loads(ask(*search, "--method", "random", "--json")[0]) == found
    with open_repository(database) as repository:
        assert repository.list_samples("tiny") == samples


def test_an_evaluation_shows_what_says_something(
    ask: Ask, trained: Path, untrained: Path, short: Path, tmp_path: Path
) -> None:
    database = registered(tmp_path, trained, short)
    ask("plan", "-m", "tiny", "--database", database, "-s", 0.8, "-o", tmp_path / "plan.json")
    ask("apply", "-p", tmp_path / "plan.json", "-m", trained, "-o", tmp_path / "cut")
    alone, _ = ask("evaluate", untrained, "-d", short)
    assert "accuracy" in alone  # nothing to compare with: it may be the dense model
    assert "agreement" not in alone
    out, err = ask("evaluate", tmp_path / "cut", "-d", short, "--dense", trained)
    assert "accuracy" in out
    assert "agreement" in out
    assert "warning" not in err
    out, _ = ask("evaluate", untrained, "-d", short, "--dense", untrained)
    assert "accuracy" not in out
    assert NO_EXACT_MATCH in out
    document = json.loads(ask("evaluate", untrained, "-d", short, "--dense", untrained, "--json")[0])
    assert (document["accuracy"], document["agreement"], document["kl"]) == (0.0, 1.0, 0.0)


def test_long_answers_may_differ_by_a_near_tie_before_the_template_is_suspected() -> None:
    """Two tokens an answer, and two hundred."""
    assert exact_match_tolerance(Metrics(0.0, 1.0, 0.5, 200, 100)) == pytest.approx(0.024)
    assert exact_match_tolerance(Metrics(0.0, 1.0, 0.5, 1600, 8)) == pytest.approx(0.42)


def test_cells_are_of_their_columns() -> None:
    metrics = Metrics(0.25, 1.0, 0.125, 100, 10, agreement=0.75)
    old = Metrics(0.25, 1.0, 0.125, 100, 10)
    exact, inexact = Metrics(0.0, 1.0, 0.5, 100, 10), Metrics(0.0, 1.0, 0.0, 100, 10)
    for dense in (None, exact):
        assert quality_columns(dense) == ["KL to dense", "exact match", "agreement"]
        assert quality_cells(metrics, dense) == [0.25, 0.125, 0.75]
        assert quality_cells(old, dense) == [0.25, 0.125, "-"]
    assert quality_columns(inexact, "validation ") == ["validation KL", "validation agreement"]
    assert quality_cells(metrics, inexact) == [0.25, 0.75]
