"""What the actors of the tests evaluate with: importable on every node, and sent there by Ray."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pruning.anatomy.architecture import Architecture
from pruning.errors import CheckpointError, InputError
from pruning.measuring.metrics import Evaluate, Metrics
from tests.mcts.landscapes import Landscape, make_anatomy

WIDTHS = (32, 32, 64, 32, 32)
ANATOMY = make_anatomy(WIDTHS)


@dataclass(frozen=True)
class LandscapeRecipe:
    """A Landscape that takes `seconds` a configuration, kills its process at a `deadly` one, and raises at others."""

    seconds: float = 0.0
    deadly: Architecture | None = None
    refused: Architecture | None = None
    broken: Architecture | None = None

    def __call__(self) -> Evaluate:
        landscape = Landscape(WIDTHS, seed=1)

        def evaluate(architectures: Sequence[Architecture], /) -> list[Metrics]:
            time.sleep(self.seconds)
            if self.deadly in architectures:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.refused in architectures:
                found = str(architectures[0].document())
                raise InputError("these widths are refused", values=found, remedy="Ask for others")
            if self.broken in architectures:
                raise ZeroDivisionError("a bug")
            return landscape([ANATOMY.ffn_widths(architecture) for architecture in architectures])

        return evaluate


@dataclass(frozen=True)
class MissingFolderRecipe:
    """Cannot be built: its folder is on no node."""

    folder: str

    def __call__(self) -> Evaluate:
        raise CheckpointError("the checkpoint's folder must be readable", values=self.folder, remedy="Mount it")


@dataclass(frozen=True)
class DyingRecipe:
    """Kills the process that builds it."""

    def __call__(self) -> Evaluate:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@dataclass(frozen=True)
class ThirdTimeRecipe:
    """Kills the process that builds it, but for every third; counts in a folder that all nodes see."""

    folder: str

    def __call__(self) -> Evaluate:
        attempt = len(list(Path(self.folder).iterdir())) + 1
        (Path(self.folder) / str(attempt)).touch()
        if attempt % 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return LandscapeRecipe()()


@dataclass(frozen=True)
class EnvironmentRecipe:
    """Its evaluator tells two environment variables that are numbers."""

    names: tuple[str, str]

    def __call__(self) -> Evaluate:
        def evaluate(architectures: Sequence[Architecture], /) -> list[Metrics]:
            first, second = (float(os.environ[name]) for name in self.names)
            return [Metrics(first, second, 0.0, 1, 1) for _ in architectures]

        return evaluate
