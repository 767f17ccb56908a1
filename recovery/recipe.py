"""How a pruned model is trained: what of it, by which losses, how long. A value with one canonical form.

What a recipe leaves open is chosen by what the model is (`Recipe.completed`).
"""

import hashlib
import json
import math
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pruning.errors import InputError


class Mode(StrEnum):
    """What is trained. The vision tower never is.

    `projector`: what carries the tower's features to the decoder. `lora`: low-rank updates of every projection of the
    decoder layers, merged when the model is written. `full`: projector, decoder layers and final norm.
    """

    PROJECTOR = "projector"
    LORA = "lora"
    FULL = "full"


class Loss(StrEnum):
    """`sft`: cross-entropy of the answers in the data. `kd-logits`: T^2 KL(teacher || student) at temperature T.
    `kd-hidden`: squared L2 distance of hidden states to the teacher's (`recovery.losses`)."""

    SFT = "sft"
    KD_LOGITS = "kd-logits"
    KD_HIDDEN = "kd-hidden"


BEST_LOSSES: Final = {Loss.SFT: 1.0, Loss.KD_HIDDEN: 1.0}
"""Supervised loss and L2 of the last hidden state: best at every share that arXiv 2507.20749 removes."""

LEAST_STEPS: Final = 100.0
"""Of a training that nobody said the length of: an epoch of little data is few steps. It ends early if they harm."""

_PER_WIDTH: Final = {Mode.PROJECTOR: 0.4, Mode.LORA: 0.8, Mode.FULL: 0.2}
"""Learning rate times D. Steps that are right for one width are too large for a wider one, about in proportion."""


class Recipe(BaseModel):
    """One recovery.

    Attributes:
        mode: None: `lora`. The same study has the projector alone suffice where less than a fifth is gone; on the
            reference no learning rate of it beats the start there, and LoRA does (docs/recovery.md).
        losses: the weight of each part; empty: `BEST_LOSSES`.
        hidden_layers: decoder layers after which `kd-hidden` compares, from 0; empty: the last hidden state alone,
            after the final norm.
        temperature: T of `kd-logits`.
        learning_rate: the highest, after the warm-up; None: by mode and model width.
        warmup: share of the steps in which the rate rises to it; afterwards it falls as a cosine, to nothing.
        epochs: passes over the training data, at most.
        steps: of the optimiser, in place of epochs. Without any length: one epoch, three of a fraction, but
            `LEAST_STEPS` at least.
        minutes: of training, evaluation not counted. Made a number of steps by the speed of the first ones, which is
            then kept: a run that goes on after it was killed takes the same number.
        batch_tokens: tokens, padding included, that go through the model at once.
        step_tokens: of answers in one optimiser step, about: gradients of several batches add up.
        rank: of the updates of `lora`.
        fraction: of the training data that is used.
        evaluations: how often the selection part is scored while training.
        patience: scores in a row that end the training, if none is nearer to the dense model than all before it. The
            start's does not count.
        seed: of all random choices.
        is_checkpointed: activations of a decoder layer are computed anew in the backward pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Mode | None = None
    losses: dict[Loss, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    hidden_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    temperature: float = Field(default=2.0, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.03, ge=0, le=1)
    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    batch_tokens: int = Field(default=2048, ge=1)
    step_tokens: int = Field(default=512, ge=1)
    rank: int = Field(default=32, ge=1)
    fraction: float = Field(default=1.0, gt=0, le=1)
    evaluations: int = Field(default=10, ge=1)
    patience: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)
    is_checkpointed: bool = False

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs or steps say how long, not both")
        if self.hidden_layers and self.losses and Loss.KD_HIDDEN not in self.losses:
            raise ValueError("hidden layers are those of the loss kd-hidden")
        return self

    @classmethod
    def of(cls, **settings: Any) -> "Recipe":
        """A recipe; raises InputError that names the first broken setting."""
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "recipe"
            raise InputError(
                f"a recipe's {where} must be valid: {first['msg'].removeprefix('Value error, ')}",
                values=repr(first.get("input"))[:80],
            ) from error

    def completed(self, width: int) -> "Recipe":
        """With everything chosen that was left open, for a model of that width D, but for how long."""
        mode = self.mode or Mode.LORA
        chosen: dict[str, Any] = {
            "mode": mode,
            "losses": self.losses or BEST_LOSSES,
            "learning_rate": self.learning_rate or _PER_WIDTH[mode] / width,
        }
        return self.model_copy(update=chosen)

    def steps_for(self, steps_per_epoch: float) -> float:
        """How many there are, where the minutes allow them; infinite where they alone say."""
        if self.steps is not None:
            return float(self.steps)
        if self.epochs is not None:
            return self.epochs * steps_per_epoch
        if self.minutes is not None:
            return math.inf
        return max(LEAST_STEPS, steps_per_epoch * (1 if self.fraction == 1.0 else 3))

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss compares with the dense model."""
        return any(loss is not Loss.SFT for loss in self.losses)

    def document(self) -> dict[str, Any]:
        """Plain JSON types, what says nothing left out."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def key(self) -> str:
        """sha256 of the canonical form."""
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()


def parse_losses(text: str) -> dict[Loss, float]:
    """`sft+kd-hidden`, `sft+0.5*kd-logits`: the weight of each part, 1 where none is said.

    Raises InputError.
    """
    found: dict[Loss, float] = {}
    for term in text.split("+"):
        weight, _, name = term.strip().rpartition("*")
        try:
            found[Loss(name.strip())] = float(weight) if weight else 1.0
        except ValueError as error:
            raise InputError(
                f"a loss is a sum of {', '.join(Loss)}, each with a weight in front of it if it is not 1",
                values=repr(text),
                remedy="For instance sft+kd-hidden, or sft+0.5*kd-logits",
            ) from error
    return found
