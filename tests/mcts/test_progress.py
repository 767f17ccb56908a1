"""The progress bar, on a terminal and off it."""

import io
import itertools
from dataclasses import replace

from rich.console import Console

from mcts.progress import SearchProgressBar
from tests.mcts.landscapes import metrics_of


def test_plain_lines_every_tenth() -> None:
    stream = io.StringIO()
    clock = itertools.count(0.0, 10.0)
    with SearchProgressBar(Console(file=stream, width=40), clock=lambda: next(clock)) as progress:
        for done in range(1, 41):
            progress(done, 40, "sparsity 0.5 (ffn)", None if done < 8 else metrics_of(0.25 / done))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    # The clock gives 0 when made, 10 when entered, then 10 more per line: 10 s for 4 of 40, 20 s for 8 of 40.
    assert lines[0] == "sparsity 0.5 (ffn): 4/40 evaluations, best KL -, about 90 s left"
    assert lines[1] == "sparsity 0.5 (ffn): 8/40 evaluations, best KL 0.03125, about 80 s left"
    assert lines[-1] == "sparsity 0.5 (ffn): 40/40 evaluations, best KL 0.00625, about 0 s left"


def test_bar_on_a_terminal() -> None:
    stream = io.StringIO()
    with SearchProgressBar(Console(file=stream, force_terminal=True, width=120)) as progress:
        progress(10, 20, "sparsity 0.5 (ffn)", replace(metrics_of(0.125), agreement=0.9375))
    shown = stream.getvalue()
    assert "10/20" in shown
    assert "best KL 0.12500, agreement 93.8%" in shown
