"""Whether checkpoint, teacher and recipe belong together, before anything is loaded or cut."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.layer_config import recorded_architecture
from pruning.checkpoints.anatomy_reader import layer_shapes, load_config, read_anatomy
from pruning.checkpoints.loading import PLAN_NAME, load_processor
from pruning.checkpoints.processor import tokenizer_of
from pruning.cutting.pruned_config import SPARSITY_KEY
from pruning.data.conversations import Conversation
from pruning.errors import CheckpointError, DatasetError, FingerprintMismatchError, InputError
from pruning.missing_packages import is_installed, missing_extra
from pruning.planning.plan import PruningPlan
from recovery.layer_map import matched_layers
from recovery.plain_weights import PLAIN_WEIGHTS, check_plain
from recovery.recipe import Mode, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_TEACHER = "Give the dense checkpoint that the pruned one was cut from: --teacher FOLDER"


def checked_plan(pruned: Path, teacher: Path) -> PruningPlan | None:
    """The plan that lies in `pruned`; None if it was saved again without one.

    Raises:
        CheckpointError: a folder is damaged or quantised, `pruned` is sparsified or not pruned, or `teacher` is pruned.
        FingerprintMismatchError: they are not of one dense model, or their tokenizers have other tokens.
    """
    config, dense = _unquantised(pruned), _dense(teacher)
    if (sparsity := getattr(config, SPARSITY_KEY, None)) is not None:
        raise CheckpointError(
            "a training fills the zeros of a sparsified checkpoint",
            values=f"{pruned}: config.json says {SPARSITY_KEY} {json.dumps(sparsity)}",
            remedy="Recover the checkpoint that `lop apply` wrote, then `lop sparsify` the recovered one",
        )
    plan = PruningPlan.load(pruned / PLAN_NAME) if (pruned / PLAN_NAME).is_file() else None
    if plan is None and recorded_architecture(config) is None:
        raise CheckpointError(
            "what is recovered is a pruned checkpoint",
            values=f"{pruned}: config.json has no per_layer_config, and there is no {PLAN_NAME}",
            remedy="Make one with `lop apply`",
        )
    own, other = (x.get_text_config(decoder=True) for x in (config, dense))
    for what in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers"):
        found = getattr(own, what, None), getattr(other, what, None)
        if found[0] != found[1]:
            raise FingerprintMismatchError(
                f"pruned model and teacher must have one {what}",
                values=f"{pruned} has {found[0]}, {teacher} has {found[1]}",
                remedy=_TEACHER,
            )
    if config.model_type != dense.model_type or layer_shapes(config) != layer_shapes(dense):
        raise FingerprintMismatchError(
            "the pruned model's layers must be cut from the teacher's",
            values=f"{pruned} is of a {config.model_type}, {teacher} is a {dense.model_type}, or layers differ in size",
            remedy=_TEACHER,
        )
    if plan is not None:
        plan.check_fingerprint(read_anatomy(teacher).fingerprint)
    _check_tokens(pruned, teacher)
    return plan


def check_planned(plan: PruningPlan, teacher: Path, recipe: Recipe) -> None:
    """Check that what `plan` makes of the checkpoint `teacher` can be trained by `recipe`.

    Raises:
        CheckpointError: the teacher is damaged, quantised or pruned.
        FingerprintMismatchError: the plan is of another model.
        PlanError: as `check_plain`.
        InputError: the recipe does not fit the model.
        MissingExtraError: LoRA without peft.
    """
    check_plain(plan)
    _dense(teacher)  # said first: a pruned folder has no anatomy to compare
    anatomy = read_anatomy(teacher)
    plan.check_fingerprint(anatomy.fingerprint)
    completed_for(recipe, teacher)
    empty = {site for site, option in plan.architecture(anatomy).items if option.units == 0}
    skipped = {i for i in range(anatomy.num_layers) if all(Site(i, half) in empty for half in Sublayer)}
    matched_layers(recipe.hidden_layers, anatomy.num_layers, skipped)


def completed_for(recipe: Recipe, teacher: Path) -> Recipe:
    """`recipe` for what is cut from the dense checkpoint `teacher`, nothing left open but how long.

    Raises:
        CheckpointError: the checkpoint is damaged, quantised or pruned.
        InputError: the recipe does not fit the model.
        MissingExtraError: LoRA without peft.
    """
    config = _dense(teacher)
    text = config.get_text_config(decoder=True)
    completed = recipe.completed(int(text.hidden_size))
    if completed.mode is Mode.PROJECTOR and text is config:
        raise no_projector(config.model_type)
    if completed.mode is Mode.LORA and not is_installed("peft"):
        raise missing_extra("recover", "LoRA needs peft, which is not installed")
    matched_layers(recipe.hidden_layers, int(text.num_hidden_layers), ())
    return completed


def check_trains_something(recipe: Recipe, train: Sequence[Conversation]) -> None:
    """Raises DatasetError if only the projector is to be trained, and no conversation has a picture."""
    if recipe.mode is Mode.PROJECTOR and all(conversation.image is None for conversation in train):
        raise DatasetError(
            "a projector is trained on conversations about pictures",
            values=f"none of the {len(train)} conversations to train on has one",
            remedy="Use --mode lora or full, or, of a model that sees, give some with pictures",
        )


def no_projector(model_type: str) -> InputError:
    """Of a language model whose projector is to be trained."""
    return InputError(
        "a projector is trained where a model has one",
        values=f"model_type {model_type!r}",
        remedy="Use --mode lora or full",
    )


def _dense(teacher: Path) -> "PreTrainedConfig":
    config = _unquantised(teacher)
    if recorded_architecture(config) is not None:
        raise CheckpointError("the teacher is the dense model", values=f"{teacher} is pruned", remedy=_TEACHER)
    return config


def _check_tokens(pruned: Path, teacher: Path) -> None:
    """Raises FingerprintMismatchError unless equal ids are equal tokens in both, where the teacher has a tokenizer."""
    kept = [folder / "tokenizer.json" for folder in (pruned, teacher)]
    if all(path.is_file() for path in kept) and kept[0].read_bytes() == kept[1].read_bytes():
        return  # as `lop apply` leaves it: no need to read a large vocabulary
    if not any((teacher / name).is_file() for name in _TOKENIZER_FILES):
        return
    own, other = (tokenizer_of(load_processor(folder)).get_vocab() for folder in (pruned, teacher))
    if differing := sorted(token for token in own.keys() | other.keys() if own.get(token) != other.get(token)):
        token = differing[0]
        raise FingerprintMismatchError(
            "pruned model and teacher must have one vocabulary",
            values=f"{pruned} and {teacher}: {len(differing)} tokens have other ids, such as {token!a}, "
            f"{own.get(token)} and {other.get(token)}",
            remedy=_TEACHER,
        )


def _unquantised(folder: Path) -> "PreTrainedConfig":
    config = load_config(folder)
    sections = (config, config.get_text_config(decoder=True))
    if found := next((x for section in sections if (x := getattr(section, "quantization_config", None))), None):
        method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
        raise CheckpointError(
            PLAIN_WEIGHTS,
            values=f"{folder}: quantization_config says {method!r}",
            remedy="Recover the unquantised checkpoint, then quantise",
        )
    return config
