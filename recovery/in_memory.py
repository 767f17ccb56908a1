"""Recoveries in memory: configurations of one dense model, each cut, trained by a recipe and judged.

No model is written. What the dense model says of the data is computed once for all of them. Held in memory: the dense
model, and one copy that is cut.
"""

import copy
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from pruning.anatomy.architecture import Architecture
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.loading import load_model, load_processor
from pruning.checkpoints.stored_dtype import stored_dtype
from pruning.cutting.surgery import cut_model
from pruning.planning.ranking import Ranking
from recovery.answer_states import AnswerStates
from recovery.judged_training import judged_training, training_batches
from recovery.judging import Judge, rough_length
from recovery.layer_map import matched_layers, skipped_layers
from recovery.precision import dense_dtype
from recovery.recipe import Recipe
from recovery.recover import Data, Ears
from recovery.scores import AnswerScores
from recovery.state import StateFolder, check_state_room, state_bytes
from recovery.teacher import Teacher
from recovery.trained import Trained


@dataclass(frozen=True)
class Recovered:
    """What one configuration is worth once it is recovered.

    Attributes:
        scores: by part, of what would be written: the best weights, or those that were cut if nothing beat them.
        is_recovered: which of the two.
        seconds: that cutting, training and judging took, over all attempts but for what a killed one lost.
    """

    scores: dict[str, AnswerScores]
    is_recovered: bool
    seconds: float


class Recoveries:
    """Cuts, trains and judges configurations of the dense checkpoint in `dense`. Use as a context manager.

    `folder` keeps what the dense model says of the training data, and the state of the training that goes on, so that a
    killed one is gone on with; it is removed when the block ends without an error.

    Raises:
        CheckpointError: the checkpoint is damaged.
        DatasetError: conversations cannot be used.
    """

    def __init__(
        self,
        dense: Path,
        ranking: Ranking,
        data: Data,
        recipe: Recipe,
        folder: Path,
        *,
        device: torch.device,
        ears: Ears | None = None,
    ) -> None:
        self._ranking, self._folder, self._ears = ranking, folder, ears or Ears()
        processor = load_processor(dense)
        self._batches = training_batches(sorted(data.train, key=rough_length), processor, recipe)
        self._dtype = stored_dtype(dense)
        self._dense = load_model(dense, dtype=dense_dtype(dense, device)).to(device)
        self._judges = [
            Judge(
                self._dense,
                part,
                on_batch=self._ears.stage(f"dense model, {part.name}"),
                kept=AnswerStates(folder / f"{part.name}.safetensors"),
            )
            for part in data.judged_on(processor)
        ]
        self._teachers: dict[tuple[object, ...], Teacher] = {}

    def __enter__(self) -> "Recoveries":
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        if kind is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def dense_scores(self) -> dict[str, AnswerScores]:
        """Of the dense model, by part."""
        return {judge.part.name: judge.dense_scores for judge in self._judges}

    def __call__(self, architecture: Architecture, recipe: Recipe) -> Recovered:
        """Recover one configuration by a recipe that leaves nothing open (`recovery.checks.completed_for`).

        Raises:
            PlanError: the configuration cannot be cut.
            InputError: the recipe does not fit the model.
            MissingExtraError: LoRA without peft.
            CheckpointError: the disk has no room for the training's state.
        """
        started = time.perf_counter()
        model = copy.deepcopy(self._dense)
        cut_model(model, architecture, self._ranking)
        model.to(torch.float32)  # in which weights are trained
        layers = matched_layers(recipe.hidden_layers, len(decoder_view(model).layers), skipped_layers(model))
        named = json.dumps([architecture.document(), recipe.document()], sort_keys=True)
        trained = Trained(model, recipe)
        check_state_room(self._folder / "state", trained.num_bytes)
        state = StateFolder(self._folder / "state", hashlib.sha256(named.encode()).hexdigest())
        teacher = self._teacher(recipe, layers, state_bytes(trained.num_bytes))
        prepared = time.perf_counter() - started
        done = judged_training(
            trained,
            self._batches,
            teacher,
            recipe,
            self._judges,
            layers=layers,
            dtype=self._dtype,
            folder=state,
            watcher=self._ears.watcher,
            on_note=self._ears.on_note,
        )
        elapsed = time.perf_counter() - started
        shutil.rmtree(self._folder / "state")
        is_recovered = done.is_recovered
        return Recovered(
            {part.name: part.after if is_recovered else part.before for part in done.parts},
            is_recovered,
            max(elapsed, prepared + done.progress.seconds),
        )

    def _teacher(self, recipe: Recipe, layers: tuple[int, ...], reserved_bytes: int) -> Teacher:
        """Made once for all recipes that ask the same of it."""
        key = (tuple(sorted(recipe.losses)), layers)
        if key not in self._teachers:
            self._teachers[key] = Teacher(
                self._dense,
                self._batches.own,
                recipe,
                layers=layers,
                folder=self._folder / "-".join(["teacher", *map(str, (*key[0], *layers))]),
                reserved_bytes=reserved_bytes,
                on_note=self._ears.on_note,
                on_batch=self._ears.stage("dense model, training data"),
            )
        return self._teachers[key]
