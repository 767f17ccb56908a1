"""ECoFLaP's scores batch by batch: what each is of, and a run that is stopped in between."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lop.workflows import ecoflap_scores
from lop.workflows.ecoflap_scores import block_scores, kept_in, scored_batches
from lop.workflows.registration import read_conversations
from lop.workflows.sparsifying import Ratios, asked_sparsity, sparsify
from pruning.cutting.rewriting.blocks import Part
from pruning.cutting.rewriting.sparsifier import LocalStep
from pruning.cutting.rewriting.sparsify_checkpoint import Modules
from pruning.cutting.streaming.solved import solved_folder
from pruning.data.batches import Batch
from pruning.data.conversations import Conversation, Turn
from pruning.measuring.block_scores import measure_block_scores
from tests.tiny_models import write_conversations


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    """Two batches."""
    return read_conversations(write_conversations(tmp_path_factory.mktemp("ten"), 10))[0]


def test_batches_are_of_the_first_tokens_and_short_ones_come_first(checkpoint: Path) -> None:
    """A question counts in whole, an answer up to four tokens: six are as long as seven."""
    words = [(9, 1), (1, 6), (1, 7), (5, 2), (1, 1)]
    texts = [
        Conversation(str(n), None, (Turn(" ".join(["red"] * q), " ".join(["blue"] * a)),))
        for n, (q, a) in enumerate(words)
    ]
    batches = scored_batches(checkpoint, texts, 4, 3)
    assert [batch.ids for batch in batches] == [("4", "1", "2"), ("3", "0")]
    assert [max(s.stop - s.start for s in batch.spans) for batch in batches] == [4, 4]
    assert all(batch.inputs["input_ids"].shape[1] == max(s.stop for s in batch.spans) for batch in batches)


def test_scores_are_sums_of_batches_along_directions_of_their_own(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, ten: list[Conversation]
) -> None:
    """What is kept is not measured again, nor is the model loaded then."""
    seeds: list[int] = []
    told: list[tuple[int, int]] = []

    def measure(_model: Any, batches: list[Batch], parts: Any, *, seed: int, on_batch: Any) -> dict[Part, Any]:
        seeds.append(seed)
        on_batch(5, 5)
        return {part: np.array([1.0, 10.0 ** len(seeds), len(batches[0].ids)]) for part in parts}

    kept: dict[int, Any] = {}

    def keep(number: int, measured: Any) -> Any:
        kept.setdefault(number, measured())
        return kept[number]

    monkeypatch.setattr(ecoflap_scores, "measure_block_scores", measure)
    found = block_scores(
        checkpoint, ten, (Part.LANGUAGE,), seed=3, keep=keep, on_score=lambda *progress: told.append(progress)
    )
    assert found[Part.LANGUAGE].tolist() == [2.0, 110.0, 10.0]
    assert told == [(5, 10), (10, 10)]
    block_scores(checkpoint, ten, (Part.LANGUAGE,), seed=4)
    assert len(set(seeds)) == 4
    monkeypatch.setattr(ecoflap_scores, "load_for_compute", lambda _: pytest.fail("the model was loaded"))
    again = block_scores(checkpoint, ten, (Part.LANGUAGE,), seed=3, keep=lambda number, _: kept[number])
    assert again[Part.LANGUAGE].tolist() == found[Part.LANGUAGE].tolist()


def test_a_stopped_run_goes_on_after_the_last_batch_that_was_scored(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path, ten: list[Conversation]
) -> None:
    asked = asked_sparsity(
        LocalStep.WANDA, density=0.5, pattern=None, ratios=Ratios.ECOFLAP, modules=Modules.LANGUAGE, seed=0
    )
    measured: list[tuple[str, ...]] = []

    def stopped_once(model: Any, batches: list[Batch], *arguments: Any, **keywords: Any) -> Any:
        measured.append(batches[0].ids)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return measure_block_scores(model, batches, *arguments, **keywords)

    monkeypatch.setattr(ecoflap_scores, "measure_block_scores", stopped_once)
    straight, out = tmp_path / "straight", tmp_path / "out"
    sparsify(checkpoint, straight, asked, ten)
    with pytest.raises(KeyboardInterrupt):
        sparsify(checkpoint, out, asked, ten)
    assert [x.name for x in solved_folder(out).glob("scores-*")] == ["scores-0.json"]
    sparsify(checkpoint, out, asked, ten)
    first, second = measured[:2]
    assert measured == [first, second, first, second, second]
    files = {path.name: path.read_bytes() for path in straight.glob("*") if path.is_file()}
    assert {path.name: path.read_bytes() for path in out.glob("*") if path.is_file()} == files


def test_what_is_kept_is_read_as_it_was_measured(tmp_path: Path) -> None:
    scores = {"language": [0.1 + 0.2, float(torch.tensor(1 / 3))]}
    keep = kept_in(tmp_path)
    assert keep(2, lambda: scores) == scores
    assert keep(2, dict) == scores
    assert keep(1, dict) == {}
