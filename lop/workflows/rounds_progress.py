"""How far `lop train --rounds` is: one bar after another, for every training and every search in turn."""

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from lop.console.console import stderr
from mcts.progress import Progress, SearchProgressBar
from policy_model.progress import ProgressCallback, TrainingProgress, progress_bar
from pruning.measuring.metrics import Metrics

if TYPE_CHECKING:
    from lop.workflows.rounds import RoundReport


class RoundsProgress:
    """Use as a context manager; `on_training`, `on_search` and `on_round` are what `train_in_rounds` takes."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._training: ProgressCallback | None = None
        self._search: Progress | None = None

    def __enter__(self) -> "RoundsProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def on_training(self, progress: TrainingProgress) -> None:
        """A step of a training; its bar begins with the first."""
        if self._training is None:
            self._end()
            self._training = self._open.enter_context(progress_bar(stderr()))
        self._training(progress)

    def on_search(self, evaluations: int, total: int, target: str, best: Metrics | None, /) -> None:
        """An evaluation of a search; its bar begins with the first."""
        if self._search is None:
            self._end()
            self._search = self._open.enter_context(SearchProgressBar())
        self._search(evaluations, total, target, best)

    def on_round(self, report: "RoundReport") -> None:
        """A line for a round that is finished."""
        self._end()
        line = (
            f"round {report.number}: {report.new_samples} new samples; plans were {report.ratio_before:.3f} times the "
            f"best known KL, now {report.ratio_after:.3f}"
        )
        if report.ratio_between is not None:
            line += f"; between these budgets {report.ratio_between:.3f} times what they were"
        if report.agreement_before is not None and report.agreement_after is not None:
            line += f"; they agreed with the dense model on {report.agreement_before:.1%} of the answer tokens, "
            line += f"now on {report.agreement_after:.1%}"
        stderr().print(line, markup=False)

    def _end(self) -> None:
        """Leave the bar that is shown: two at once would write over each other."""
        self._open.close()
        self._training = self._search = None
