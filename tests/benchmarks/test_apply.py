"""The apply benchmark on a tiny model: what it makes is a real checkpoint, and both ways of cutting it agree."""

from pathlib import Path

from benchmarks.apply import SPARSITY, compare_with_transformers, measure_streaming
from benchmarks.random_checkpoint import LlavaShape

TINY = LlavaShape(num_layers=2, hidden_size=64, ffn_width=512, num_heads=4, vocab_size=300, num_vision_layers=1)


def test_the_hub_names_load_and_both_ways_give_the_same_bytes(tmp_path: Path) -> None:
    figures, rows = compare_with_transformers(tmp_path, TINY, 1)
    assert figures["same_bytes_as_transformers"]
    assert [row["method"] for row in rows] == ["lop apply", "transformers"]
    assert not list(tmp_path.rglob("*.safetensors.partial"))
    assert not (tmp_path / "small").exists()


def test_what_is_measured_of_streaming(tmp_path: Path) -> None:
    figures, (row,) = measure_streaming(tmp_path, TINY, 1)
    assert SPARSITY <= row["decoder_sparsity"] < SPARSITY + 0.2
    assert row["output_bytes"] < row["input_bytes"]
    assert figures["time_ratio"] == row["apply_seconds"] / (row["cp_seconds"] + row["read_seconds"])
    assert figures["peak_rss_gb"] == row["peak_rss_bytes"] / 1e9 > 0.03
    assert {path.name for path in tmp_path.iterdir()} == {"large.plan.json", "large.plan.ranking.safetensors"}
