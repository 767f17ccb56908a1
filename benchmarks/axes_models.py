"""The two models of `benchmarks.axes`: the reference, and a really pretrained one that answers for itself.

SmolLM2-135M-Instruct comes out of a PyPI package, and its conversations are its own answers to the prompts of
`benchmarks.real_data`, which are made if the three files are not there. It has no digits to read and no exact answers:
long ones are told by agreement.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measured_model import ALL, CALIBRATION, VALIDATION, MeasuredModel
from benchmarks.real_checkpoint import smollm2
from benchmarks.real_data import CALIBRATION as RANKED_BY
from benchmarks.real_data import PROMPTS, SELECTION, write_split
from benchmarks.real_data import VALIDATION as JUDGED_BY
from benchmarks.steps import Steps
from benchmarks.subject import REFERENCE
from lop.workflows.compute import load_for_compute
from pruning.data.conversations import load_conversations

MAX_NEW_TOKENS = 48
"""Of the dense model's answers, as in `benchmarks.real`."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured on one model.

    Attributes:
        conversations: that searches score on; statistics and the ranking are of all there are.
        validation: conversations that judge, None for all.
        evaluations: configurations a target, its share of the scan included.
        evolution_everywhere: evolution runs in the single spaces as well, which no figure compares it in.
    """

    conversations: int
    validation: int | None
    evaluations: int
    evolution_everywhere: bool = True


@dataclass(frozen=True)
class AxesModel:
    """A model to cut, and the checkpoint of the same shape whose layers are timed on this machine."""

    measured: MeasuredModel
    timed: Path


def reference(sizes: Sizes, work: Path, _steps: Steps) -> AxesModel:
    """The reference model and its visual questions."""
    data = REFERENCE / "data"
    calibration = load_conversations(data / "calibration.json")
    conversations = {
        ALL: calibration,
        CALIBRATION: calibration[: sizes.conversations],
        VALIDATION: load_conversations(data / "validation.json")[: sizes.validation],
    }
    return AxesModel(MeasuredModel(REFERENCE / "model", conversations, work), REFERENCE / "model")


def pretrained(sizes: Sizes, work: Path, steps: Steps) -> AxesModel:
    """SmolLM2 in bfloat16, computed in float32; ranked, searched and judged on three files of its own answers. It is
    timed in float32, too, which is how this machine runs it."""
    folder = work / "smollm2"
    half, wide = smollm2(folder / "checkpoint")
    files = {name: folder / f"{name}.json" for name in (RANKED_BY, SELECTION, JUDGED_BY)}
    if not all(file.is_file() for file in files.values()):
        answers = folder / "answers.json"
        command = ["data", "answer", "--model", str(half), "--prompts", str(PROMPTS), "--out", str(answers)]
        steps.lop("answer", *command, "--max-new-tokens", str(MAX_NEW_TOKENS), makes=answers)
        files = write_split(answers, PROMPTS, folder)
    conversations = {
        ALL: load_conversations(files[RANKED_BY]),
        CALIBRATION: load_conversations(files[SELECTION])[: sizes.conversations],
        VALIDATION: load_conversations(files[JUDGED_BY])[: sizes.validation],
    }
    return AxesModel(MeasuredModel(half, conversations, work, load=load_for_compute), wide)


MODELS: dict[str, Callable[[Sizes, Path, Steps], AxesModel]] = {"reference": reference, "smollm2": pretrained}
