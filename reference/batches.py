"""Training batches: pictures and token ids, made anew for every step.

Batch `i` is a function of (seed, i) alone, so a resumed build goes on with exactly the batches it would have seen,
and a background process can make them ahead of time.

Letters: B conversations, T tokens, padded on the right to a fixed length so that nothing recompiles.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from reference.conversations import (
    DRILL_PLAN,
    LOOK_PLAN,
    PLAN,
    STEP_PLAN,
    STUDY_PLAN,
    Conversation,
    sample_conversation,
)
from reference.glyphs import CELLS
from reference.layout import ASSISTANT, END, USER, Layout
from reference.scenes import render_scenes

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """What a training step needs.

    Attributes:
        pixels: uint8 [B, H, W, 3].
        ids: int64 [B, T], padded with the pad token.
        labels: int64 [B, T], the next token where it belongs to an answer (its end token included), else IGNORE.
        turns: int64 [B, T], number of the turn the label belongs to, -1 elsewhere.
        image_start: index of the first image token in every sequence.
    """

    pixels: Tensor
    ids: Tensor
    labels: Tensor
    turns: Tensor
    image_start: int


class Encoder:
    """Turns conversations into token ids; equal to tokenising the rendered chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, length: int, layout: Layout) -> None:
        self._ids = lru_cache(maxsize=65536)(lambda text: tokenizer(text)["input_ids"])
        special = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in (USER, ASSISTANT, END, layout.image)}
        self._user, self._assistant, self._end = special[USER], special[ASSISTANT], special[END]
        self._prefix: list[int] = self._ids(layout.prefix)
        self._image = [special[layout.image]] * CELLS
        self._after_image = layout.after_image
        self._pad = int(tokenizer.pad_token_id)
        self.length = length

    def encode(self, pairs: list[tuple[str, str]]) -> tuple[list[int], list[int], list[int]]:
        """Ids, labels and turn numbers of one conversation of (question, answer); whole turns that do not fit are
        left out."""
        ids: list[int] = []
        answer_of: list[int] = []  # turn number where the token itself belongs to an answer, else -1
        for turn, (question, answer) in enumerate(pairs):
            start = [self._user] if turn else [*self._prefix, *self._image]
            asked = self._ids(question if turn else self._after_image + question)
            said = self._ids(answer)
            prompt = [*start, *asked, self._assistant]
            if len(ids) + len(prompt) + len(said) + 1 > self.length:
                break
            ids += [*prompt, *said, self._end]
            answer_of += [-1] * len(prompt) + [turn] * (len(said) + 1)
        padding = self.length - len(ids)
        turns = [*answer_of[1:], -1] + [-1] * padding
        labels = [token if turn >= 0 else IGNORE for token, turn in zip([*ids[1:], 0], turns, strict=False)]
        return ids + [self._pad] * padding, labels + [IGNORE] * padding, turns

    def batch(self, pictures: "np.typing.NDArray[np.uint8]", conversations: list[list[tuple[str, str]]]) -> Batch:
        """A batch of conversations, each a list of (question, answer), about pictures uint8 [B, H, W, 3]."""
        encoded = [self.encode(pairs) for pairs in conversations]
        ids, labels, turns = (torch.tensor([item[part] for item in encoded]) for part in range(3))
        return Batch(torch.from_numpy(pictures), ids, labels, turns, image_start=len(self._prefix))


def pairs_of(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.question, turn.answer) for turn in conversation.turns]


def normalise(pixels: Tensor) -> Tensor:
    """What the image processor does to a picture: uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


@dataclass(frozen=True)
class Curriculum:
    """Which plan of questions each step's batch follows; in the last two stages, every other batch is a drill."""

    look_until: int = 800
    study_until: int = 1500
    steps_until: int = 2500

    def plan(self, step: int) -> tuple[str, ...]:
        """The kinds of question asked in the batch of a step."""
        if step < self.look_until:
            return LOOK_PLAN
        if step < self.study_until:
            return STUDY_PLAN
        if step < self.steps_until:
            return STUDY_PLAN if step % 2 else STEP_PLAN
        return PLAN if step % 2 else DRILL_PLAN


class ConversationBatches(Dataset[Batch]):
    """Map-style: item `step` is the whole batch of that step."""

    def __init__(self, encoder: Encoder, size: int, seed: int, curriculum: Curriculum) -> None:
        self._encoder, self._size, self._seed, self._curriculum = encoder, size, seed, curriculum

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self._seed, step])
        plan = self._curriculum.plan(step)
        conversations = [sample_conversation(rng, plan) for _ in range(self._size)]
        pictures = render_scenes([item.scene for item in conversations], "train", rng)
        return self._encoder.batch(pictures, [pairs_of(item) for item in conversations])
