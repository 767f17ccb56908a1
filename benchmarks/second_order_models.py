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
from benchmarks.second_order_data import answered, by_length
from benchmarks.steps import Steps
from benchmarks.subject import REFERENCE
from lop.workflows.compute import compute_device
from lop.workflows.measuring import measure_activations, measure_second_order, streamed
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.atomic_file import replace_file
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import weights_sha256
from pruning.data.conversations import Conversation, calibration_id, load_conversations
from pruning.forward.layer_source import CheckpointLayers
from pruning.measuring import second_order
from pruning.measuring.importance import ranking_of
from pruning.measuring.second_order import MeasuredOn, SecondOrderStore
from pruning.planning.ranking import Ranking
from reference.dataset import write_split

MODELS = ("reference", "smollm2")
MAGNITUDE, ELIMINATION = "activations", "elimination"

NUM_CALIBRATION = 256
"""New conversations of the reference: some 39,000 tokens."""

_CALIBRATION_SEED = 20_261_129

_CODE = ("benchmarks.second_order_models",)


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
        self.name, self.path, self.stored = name, path, stored or path
        self.folder = folder
        self._conversations = {part: load_conversations(file, limit) for part, file in data.items()}

    @cached_property
    def anatomy(self) -> ModelAnatomy:
        return read_anatomy(self.path)

    @property
    def calibration(self) -> list[Conversation]:
        return self._conversations[CALIBRATION]

    @cached_property
    def passed(self) -> list[Conversation]:
        """All of `calibration`, in the order in which they go through layers."""
        return by_length(self.calibration)

    @property
    def validation(self) -> list[Conversation]:
        return self._conversations[VALIDATION]

    @cached_property
    def key(self) -> tuple[str, ...]:
        """What every figure depends on."""
        return self.name, weights_sha256(self.path), *(calibration_id(x) for x in self._conversations.values())

    def ranked(self, by: str, steps: Steps) -> None:
        """See to it that there is a ranking."""
        steps.call(f"rank {by}", self.key, partial(self.rank, by), modules=_CODE)

    def rank(self, by: str) -> dict[str, Any]:
        """Write the ranking's file; what it is called."""
        if by == ELIMINATION:
            statistics = measure_second_order(self.path, weights_sha256(self.path), self.passed, work=self._sums)
        else:
            statistics = measure_activations(self.path, self.passed)
        ranking = ranking_of(statistics, self.anatomy)
        replace_file(self.ranking_path(by), ranking.to_bytes())
        return {"sha256": ranking.sha256}

    def ranking(self, by: str) -> Ranking:
        """What `rank` has written."""
        return Ranking.from_bytes(self.ranking_path(by).read_bytes())

    def ranking_path(self, by: str) -> Path:
        """The file of a ranking."""
        return self.folder / f"{by}.ranking.safetensors"

    def products(self) -> SecondOrderStore:
        """H of the dense model's inputs, which elimination leaves behind; what is missing of it is measured."""
        of = MeasuredOn(self.anatomy.fingerprint, weights_sha256(self.path), calibration_id(self.passed))
        store = SecondOrderStore(self._sums, of)
        if not store.is_whole(self.anatomy.num_layers):
            batches = streamed(self.path, self.passed)
            source = CheckpointLayers(self.path, compute_device())
            second_order.measure_second_order(source, batches, store, num_rows=batches.num_rows)
        return store

    def forget_products(self) -> None:
        """Make room on the disk."""
        shutil.rmtree(self._sums, ignore_errors=True)

    @property
    def _sums(self) -> Path:
        return self.folder / ".sums"


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
