"""What a step of each training costs, by which trainings of one ratio get equal minutes."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.subject import REFERENCE
from pruning.checkpoints.loading import load_model, load_processor
from pruning.checkpoints.stored_dtype import stored_dtype
from pruning.data.conversations import load_conversations
from recovery.judged_training import judged_training, training_batches
from recovery.judging import Judge, part_of, rough_length
from recovery.recipe import Recipe, parse_losses
from recovery.state import StateFolder
from recovery.teacher import Teacher
from recovery.trained import Trained
from recovery.training import Watcher

Kind = tuple[str, str]
"""Mode and loss, as `lop recover` has them."""

_TURNS = 2
_STEPS = 4
_CONVERSATIONS = 16
"""About those of one step: every step is then of all of them."""


def seconds_of_steps(pruned: Mapping[str, Path], kinds: Sequence[Kind], data: Path) -> dict[str, Any]:
    """{"seconds": {name: {"MODE LOSS": the processor's seconds of a step of `lop recover`, one thread}}}.

    The least of all steps but the first of a training, which records what the tower says; one training after the
    other in each of several turns, so that what else the machine does falls on all alike.
    """
    conversations = load_conversations(data)[:_CONVERSATIONS]
    processor, dense = load_processor(REFERENCE / "model"), load_model(REFERENCE / "model", dtype=torch.float32)
    width = int(dense.config.get_text_config(decoder=True).hidden_size)
    recipes = {
        kind: Recipe.of(mode=kind[0], losses=parse_losses(kind[1]), steps=_STEPS, evaluations=1).completed(width)
        for kind in kinds
    }
    batches = training_batches(sorted(conversations, key=rough_length), processor, next(iter(recipes.values())))
    judges = [Judge(dense, part_of("selection", conversations[:1], processor))]
    # What is trained already costs as much: losses of one mode share a model.
    trained = {
        (name, recipe.mode): Trained(load_model(folder, dtype=torch.float32), recipe)
        for (name, folder), recipe in product(pruned.items(), {r.mode: r for r in recipes.values()}.values())
    }
    seconds: dict[str, dict[str, float]] = {name: {} for name in pruned}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as place:
            teachers = {
                kind: Teacher(dense, batches.own, recipe, folder=Path(place) / "-".join(kind))
                for kind, recipe in recipes.items()
            }
            for turn, name, (kind, recipe) in product(range(_TURNS), pruned, recipes.items()):
                marks: list[float] = []
                judged_training(
                    trained[name, recipe.mode],
                    batches,
                    teachers[kind],
                    recipe,
                    judges,
                    layers=(),
                    dtype=stored_dtype(pruned[name]),
                    folder=StateFolder(Path(place) / "state", f"{turn} {name} {kind}"),
                    watcher=_clock(marks),
                )
                passed = min(after - before for before, after in pairwise(marks))
                known = seconds[name].get(" ".join(kind), passed)
                seconds[name][" ".join(kind)] = min(passed, known)
    finally:
        torch.set_num_threads(threads)
    return {"seconds": seconds}


def _clock(marks: list[float]) -> Watcher:
    """Notes the processor's time after each step."""
    return Watcher(on_step=lambda *_: marks.append(time.process_time()))
