"""What was measured is kept, and forgotten when the same code no longer measures it."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.kept_metrics import KeptMetrics
from pruning.measuring.metrics import Metrics


class Counting:
    """An evaluator whose KL is `scale` times the sum of the widths."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.measured: list[tuple[int, ...]] = []

    def evaluate(self, widths: Sequence[int]) -> Metrics:
        self.measured.append(tuple(widths))
        return Metrics(self.scale * sum(widths), 0.0, 0.5, 10, 2, agreement=0.5)


def kept(path: Path, evaluator: Counting) -> KeptMetrics:
    return KeptMetrics(path, lambda: evaluator)  # type: ignore[arg-type,return-value]


def test_each_is_measured_once(tmp_path: Path) -> None:
    first = Counting()
    metrics = kept(tmp_path / "m", first)
    assert [metrics(w).kl for w in ((1, 2), (3, 4), (1, 2))] == [3.0, 7.0, 3.0]
    assert first.measured == [(1, 2), (3, 4)]
    assert metrics.remembered_seconds > 0.0
    second = Counting()
    again = kept(tmp_path / "m", second)
    assert again((1, 2)) == metrics((1, 2))
    assert again((5, 5)).kl == 10.0
    assert second.measured == [(1, 2), (3, 4), (5, 5)]  # the first two to see that they are the same


def test_other_numbers_are_forgotten(tmp_path: Path) -> None:
    kept(tmp_path / "m", Counting())((1, 2))
    changed = kept(tmp_path / "m", Counting(scale=2.0))
    assert changed((1, 2)).kl == 6.0
    assert kept(tmp_path / "m", Counting(scale=2.0))((1, 2)).kl == 6.0


def test_a_line_that_was_being_written(tmp_path: Path) -> None:
    metrics = kept(tmp_path / "m", Counting())
    metrics((1, 2))
    metrics((3, 4))
    content = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(content[:-9])
    evaluator = Counting()
    cut = kept(tmp_path / "m", evaluator)
    assert [cut((1, 2)).kl, cut((3, 4)).kl] == [3.0, 7.0]
    assert evaluator.measured == [(1, 2), (3, 4)]  # one to see that it is the same
    assert (tmp_path / "m").read_bytes().count(b"\n") == 2


def test_of_many_a_few_are_measured_again(tmp_path: Path) -> None:
    metrics = kept(tmp_path / "m", Counting())
    for width in range(1, 41):
        metrics((width, width))
    again = Counting()
    assert kept(tmp_path / "m", again)((7, 7)).kl == 14.0
    assert again.measured == [(1, 1), (11, 11), (21, 21), (31, 31)]
