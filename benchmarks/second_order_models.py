"""The models of `benchmarks.second_order`, each with its data: the reference and SmolLM2-135M-Instruct.

The reference calibrates on new conversations of its world, since its own file has fewer than 30,000 tokens, and
validates on its own file. SmolLM2 answers its prompts itself (`benchmarks.second_order_data`).
"""

import shutil
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from benchmarks.real_checkpoint import smollm2
from benchmarks.real_data import CALIBRATION, VALIDATION
from benchmarks.second_order_data import answered
from benchmarks.second_order_ecoflap import MODULES, SparseModel
from benchmarks.second_order_joint import JointModel
from benchmarks.steps import Steps
from benchmarks.subject import REFERENCE
from lop.workflows.measuring import measure_activations, measure_second_order
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.atomic_file import replace_file
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import weights_sha256
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.measuring.importance import ranking_of
from pruning.planning.ranking import Ranking
from reference.dataset import write_split

MODELS = ("reference", "smollm2")
MAGNITUDE, ELIMINATION = "activations", "elimination"

NUM_CALIBRATION = 256
"""New conversations of the reference: some 39,000 tokens."""

_CALIBRATION_SEED = 20_261_129


class Model:
    """A dense checkpoint with its data.

    Args:
        path: of the checkpoint.
        data: LLaVA-format files, by the part that they are for.
        folder: for what is found of it. What is made again from the rest is hidden there, so that
            `benchmarks.carried` leaves it behind.
        limit: of each part, only the first so many conversations; None: all.
        stored: the same weights in the dtype whose bytes count; by default `path`.
    """

    def __init__(
        self, name: str, path: Path, data: dict[str, Path], folder: Path, limit: int | None, stored: Path | None = None
    ) -> None:
        self.name, self.path, self._stored = name, path, stored or path
        self._folder = folder
        self._conversations = {part: load_conversations(file, limit) for part, file in data.items()}

    @cached_property
    def anatomy(self) -> ModelAnatomy:
        return read_anatomy(self.path)

    @property
    def sparse(self) -> SparseModel:
        """The model as the parts `ecoflap` and `densities` take it."""
        return SparseModel(self.name, self.path, self.calibration, self.validation, self._folder, MODULES[self.name])

    @property
    def joint(self) -> JointModel:
        """The model as the parts `joint` and `reload` take it."""
        path = self._ranking_path(MAGNITUDE)
        return JointModel(self.name, self.path, self._stored, path, self.calibration, self.validation, self._folder)

    @property
    def calibration(self) -> list[Conversation]:
        return self._conversations[CALIBRATION]

    @property
    def validation(self) -> list[Conversation]:
        return self._conversations[VALIDATION]

    @cached_property
    def key(self) -> tuple[str, ...]:
        """What every figure depends on."""
        return self.name, weights_sha256(self.path), *(calibration_id(x) for x in self._conversations.values())

    def ranked(self, by: str, steps: Steps) -> None:
        """See to it that there is a ranking."""
        steps.call(f"rank {by}", self.key, partial(self.rank, by))

    def rank(self, by: str) -> dict[str, Any]:
        """Write the ranking's file; what it is called."""
        if by == ELIMINATION:
            sums = self._folder / ".sums"
            statistics = measure_second_order(self.path, weights_sha256(self.path), self.calibration, work=sums)
            shutil.rmtree(sums)
        else:
            statistics = measure_activations(self.path, self.calibration)
        ranking = ranking_of(statistics, self.anatomy)
        replace_file(self._ranking_path(by), ranking.to_bytes())
        return {"sha256": ranking.sha256}

    def ranking(self, by: str) -> Ranking:
        """What `rank` has written."""
        return Ranking.from_bytes(self._ranking_path(by).read_bytes())

    def _ranking_path(self, by: str) -> Path:
        return self._folder / f"{by}.ranking.safetensors"


def prepared(name: str, checkpoint: Path, folder: Path, steps: Steps, limit: int | None) -> Model:
    """The model with its data. SmolLM2 lies in `checkpoint`, or is made there; it answers and is measured in float32,
    which has the values of its bfloat16."""
    if name == "smollm2":
        half, wide = smollm2(checkpoint)
        return Model(name, wide, answered(half, folder, steps, limit), folder, limit, half)
    files = {CALIBRATION: _new_conversations(folder / ".data"), VALIDATION: REFERENCE / "data" / "validation.json"}
    return Model(name, REFERENCE / "model", files, folder, limit)


def _new_conversations(folder: Path) -> Path:
    """Of the reference's world, none of which any other part of the repository has."""
    path = folder / f"{CALIBRATION}.json"
    if not folder.is_dir():
        draft = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        write_split(draft, "calibration", _CALIBRATION_SEED, NUM_CALIBRATION)
        draft.rename(folder)
    return path
