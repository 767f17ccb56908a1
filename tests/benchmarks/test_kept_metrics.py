"""What was measured is kept, and forgotten when the same code no longer measures it."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.kept_metrics import KeptMetrics
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.measuring.metrics import Metrics, Widths

LAYERS = tuple(DecoderLayer(n, 50, 8, 4, 16, 3, 2000) for n in range(2))
TWO_LAYERS = ModelAnatomy("llava", "llama", 32, 50, LAYERS, 5000, "F32", "0" * 64)


class Counting:
    """An evaluator whose KL is `scale` times the FFN channels, and ten times the KV groups, that are kept."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.measured: list[Widths] = []

    def __call__(self, architectures: Sequence[Architecture], /) -> list[Metrics]:
        found = []
        for x in architectures:
            widths, groups = TWO_LAYERS.ffn_widths(x), TWO_LAYERS.kv_groups(x)
            self.measured.append(widths)
            kl = self.scale * (sum(widths) + 10 * sum(groups) - 80)
            found.append(Metrics(kl, 0.0, 0.5, 10, 2, agreement=0.5))
        return found


def kept(path: Path, evaluator: Counting) -> KeptMetrics:
    return KeptMetrics(path, lambda: evaluator, TWO_LAYERS)


def kl(metrics: KeptMetrics, *widths: int, groups: tuple[int, int] = (4, 4)) -> float:
    return metrics(TWO_LAYERS.architecture(widths, groups)).kl


def test_each_is_measured_once(tmp_path: Path) -> None:
    first = Counting()
    metrics = kept(tmp_path / "m", first)
    assert [kl(metrics, *w) for w in ((1, 2), (3, 4), (1, 2))] == [3.0, 7.0, 3.0]
    assert first.measured == [(1, 2), (3, 4)]
    assert metrics.remembered_seconds > 0.0
    second = Counting()
    again = kept(tmp_path / "m", second)
    assert kl(again, 1, 2) == 3.0
    assert kl(again, 5, 5) == 10.0
    assert second.measured == [(1, 2), (3, 4), (5, 5)]  # the first two to see that they are the same


def test_groups_and_skips_are_told_apart(tmp_path: Path) -> None:
    """And what changes FFN widths alone is kept as it always was."""
    metrics = kept(tmp_path / "m", Counting())
    asked = [((1, 2), (4, 4)), ((1, 2), (4, 3)), ((0, 2), (4, 0))]
    expected = [3.0, -7.0, -38.0]
    assert [kl(metrics, *widths, groups=groups) for widths, groups in asked] == expected
    again = Counting()
    read = kept(tmp_path / "m", again)
    assert [kl(read, *widths, groups=groups) for widths, groups in asked] == expected
    assert len(again.measured) == 3  # each once, to see that they are the same
    lines = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert [line.get("widths") for line in lines] == [[1, 2], None, None]
    assert lines[1]["layers"][1]["attention"] == {"units": 3}


def test_other_numbers_are_forgotten(tmp_path: Path) -> None:
    kl(kept(tmp_path / "m", Counting()), 1, 2)
    changed = kept(tmp_path / "m", Counting(scale=2.0))
    assert kl(changed, 1, 2) == 6.0
    assert kl(kept(tmp_path / "m", Counting(scale=2.0)), 1, 2) == 6.0


def test_a_line_that_was_being_written(tmp_path: Path) -> None:
    metrics = kept(tmp_path / "m", Counting())
    kl(metrics, 1, 2)
    kl(metrics, 3, 4)
    content = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(content[:-9])
    evaluator = Counting()
    cut = kept(tmp_path / "m", evaluator)
    assert [kl(cut, 1, 2), kl(cut, 3, 4)] == [3.0, 7.0]
    assert evaluator.measured == [(1, 2), (3, 4)]  # one to see that it is the same
    assert (tmp_path / "m").read_bytes().count(b"\n") == 2


def test_of_many_a_few_are_measured_again(tmp_path: Path) -> None:
    metrics = kept(tmp_path / "m", Counting())
    for width in range(1, 41):
        kl(metrics, width, width)
    again = Counting()
    assert kl(kept(tmp_path / "m", again), 7, 7) == 14.0
    assert again.measured == [(1, 1), (11, 11), (21, 21), (31, 31)]
