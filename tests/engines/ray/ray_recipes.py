"""What the actors of the tests evaluate with: importable on every node, and sent there by Ray."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.memo import EvaluateInOrder
from pruning.errors import CheckpointError, InputError
from pruning.measuring.metrics import Metrics, Widths
from tests.mcts.landscapes import Landscape

DENSE = (32, 32, 64, 32, 32)


@dataclass(frozen=True)
class LandscapeRecipe:
    """A Landscape that takes `seconds` a configuration, kills its process at `deadly` widths, and raises at others."""

    seconds: float = 0.0
    deadly: Widths = ()
    refused: Widths = ()
    broken: Widths = ()

    def __call__(self) -> EvaluateInOrder:
        landscape = Landscape(DENSE, seed=1)

        def evaluate(widths: Sequence[Widths], /) -> list[Metrics]:
            time.sleep(self.seconds)
            if self.deadly in widths:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.refused in widths:
                raise InputError("these widths are refused", values=str(list(self.refused)), remedy="Ask for others")
            if self.broken in widths:
                raise ZeroDivisionError("a bug")
            return landscape(widths)

        return evaluate


@dataclass(frozen=True)
class MissingFolderRecipe:
    """Cannot be built: its folder is on no node."""

    folder: str

    def __call__(self) -> EvaluateInOrder:
        raise CheckpointError("the checkpoint's folder must be readable", values=self.folder, remedy="Mount it")


@dataclass(frozen=True)
class DyingRecipe:
    """Kills the process that builds it."""

    def __call__(self) -> EvaluateInOrder:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@dataclass(frozen=True)
class ThirdTimeRecipe:
    """Kills the process that builds it, but for every third; counts in a folder that all nodes see."""

    folder: str

    def __call__(self) -> EvaluateInOrder:
        attempt = len(list(Path(self.folder).iterdir())) + 1
        (Path(self.folder) / str(attempt)).touch()
        if attempt % 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return Landscape(DENSE, seed=1)


@dataclass(frozen=True)
class EnvironmentRecipe:
    """Its evaluator tells two environment variables that are numbers."""

    names: tuple[str, str]

    def __call__(self) -> Callable[[Sequence[Widths]], list[Metrics]]:
        def evaluate(widths: Sequence[Widths], /) -> list[Metrics]:
            first, second = (float(os.environ[name]) for name in self.names)
            return [Metrics(first, second, 0.0, 1, 1) for _ in widths]

        return evaluate
