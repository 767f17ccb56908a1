"""Prompts that no chat template has rendered, as evaluation harnesses write them for models that know of no chat."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from pruning.checkpoints.processor import tokenizer_of
from pruning.data.conversations import Conversation, Turn
from pruning.data.input_checks import check_embedded
from pruning.measuring.answers import check_lengths
from pruning.measuring.generation import generate_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor


def raw_tokens(text: str, processor: "Processor") -> list[int]:
    """The tokens of `text` as its tokenizer has them, with the one that begins texts (BOS) where it writes that.

    A chat template writes BOS itself; here nobody else does, and models that have learned with it say much else without
    it. A text that begins with it gets no second one. lm-evaluation-harness's own models do the same.
    """
    tokenizer = tokenizer_of(processor)
    bos = tokenizer.bos_token
    special = bos is None or not text.startswith(str(bos))
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def continue_texts(
    model: "PreTrainedModel",
    processor: "Processor",
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    names: Sequence[str] | None = None,
    stops: Sequence[str] = (),
    on_texts: Callable[[int], None] = lambda _count: None,
) -> list[str]:
    """The model's greedy continuation of each text, spaces at its ends included, until it ends the text, or has said
    one of `stops`; what follows that may be anything.

    `names` are for messages; `on_texts` is told how many more are done.

    Raises DatasetError, before anything is asked, for a text without tokens, or too long with its continuation;
    CheckpointError for a token without embedding.
    """
    names = names or list(map(str, range(len(texts))))
    encoded = [raw_tokens(text, processor) for text in texts]
    for name, text, ids in zip(names, texts, encoded, strict=True):
        check_embedded(set(ids), Conversation(name, None, (Turn(text, ""),)), processor)
    check_lengths(model.config, names, list(map(len, encoded)), max_new_tokens)
    tokenizer, found = tokenizer_of(processor), dict[int, str]()

    def text_of(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def has_stopped(_row: int, tokens: list[int]) -> bool:
        text = text_of(tokens).rstrip("\ufffd")  # a character that is cut in the middle may yet become another
        return any(stop in text for stop in stops)

    order = sorted(range(len(texts)), key=lambda index: (len(encoded[index]), index))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        tokens, mask = _left_padded([encoded[index] for index in batch], int(tokenizer.pad_token_id or 0))
        inputs = {"input_ids": tokens.to(model.device), "attention_mask": mask.to(model.device)}
        with torch.inference_mode():
            said = generate_tokens(
                model, inputs, max_new_tokens=max_new_tokens, is_enough=has_stopped if stops else None
            )
        for index, row in zip(batch, said, strict=True):
            found[index] = text_of(row.tolist())
        on_texts(len(batch))
    return [found[index] for index in range(len(texts))]


def _left_padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, T] and their mask."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), padding)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, length - len(row) :], mask[place, length - len(row) :] = torch.tensor(row), 1
    return ids, mask
