"""The apply benchmark on a tiny model: what it makes is a real checkpoint, and both ways of cutting it agree."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from benchmarks.apply import SPARSITY, compare_with_transformers, measure_streaming
from benchmarks.child_process import measure
from benchmarks.random_checkpoint import LlavaShape, random_ranking
from pruning.checkpoints.anatomy_reader import anatomy_of

TINY = LlavaShape(num_layers=2, hidden_size=64, ffn_width=512, num_heads=4, vocab_size=300, num_vision_layers=1)


def test_the_hub_names_load_and_both_ways_give_the_same_bytes(tmp_path: Path) -> None:
    figures, rows = compare_with_transformers(tmp_path, TINY, 1)
    assert figures["same_bytes_as_transformers"]
    assert [row["method"] for row in rows] == ["lop apply", "transformers"]
    assert not list(tmp_path.rglob("*.safetensors.partial"))
    assert not (tmp_path / "small").exists()


def test_tensors_are_called_as_on_the_hub() -> None:
    names = {name for name, _, _ in TINY.tensors()}
    assert {
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "multi_modal_projector.linear_1.weight",
        "language_model.model.layers.1.mlp.gate_proj.weight",
        "language_model.lm_head.weight",
    } <= names


def test_the_ranking_is_the_one_that_was_measured_with() -> None:
    """Its sha256 is of commit 3424fc7, when three benchmarks each made their own."""
    with torch.device("meta"):
        anatomy = anatomy_of(LlavaForConditionalGeneration(TINY.config()))
    assert random_ranking(anatomy).sha256 == "9be8a84830cf6634762035f0352da1be79353383b1d5e9992a9d1fa8f39d174d"
    assert random_ranking(anatomy, seed=1).sha256 != random_ranking(anatomy).sha256


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"-c .* failed: .*no luck"):
        measure([sys.executable, "-c", "raise SystemExit('no luck')"])


def test_what_is_measured_of_streaming(tmp_path: Path) -> None:
    figures, (row,) = measure_streaming(tmp_path, TINY, 1)
    assert SPARSITY <= row["decoder_sparsity"] < SPARSITY + 0.2
    assert row["output_bytes"] < row["input_bytes"]
    assert figures["time_ratio"] == row["apply_seconds"] / (row["cp_seconds"] + row["read_seconds"])
    assert figures["peak_rss_gb"] == row["peak_rss_bytes"] / 1e9 > 0.03
    assert {path.name for path in tmp_path.iterdir()} == {"large.plan.json", "large.plan.ranking.safetensors"}
