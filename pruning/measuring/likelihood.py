"""Log-likelihoods of texts that go on after others, as evaluation harnesses ask for them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from pruning.checkpoints.processor import tokenizer_of
from pruning.errors import DatasetError
from pruning.forward.wide_passes import wide_passes
from pruning.measuring.raw_prompts import raw_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor


@torch.inference_mode()
def log_likelihoods(
    model: "PreTrainedModel",
    processor: "Processor",
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 16,
    on_pairs: Callable[[int], None] = lambda _count: None,
) -> list[tuple[float, bool]]:
    """For each (context, continuation): the continuation's log-likelihood in nats, and whether it is the greedy one.

    Spaces that end a context belong to the continuation. An empty context is the token that begins texts, or ends them.
    `on_pairs` is told how many more are done.

    Raises DatasetError, before anything is asked, for a continuation without tokens, and for a text longer than the
    model's positions.
    """
    encoded = [encode_pair(context, continuation, processor) for context, continuation in pairs]
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for (context, _), (before, after) in zip(pairs, encoded, strict=True):
        if not after or (longest is not None and len(before) + len(after) > longest):
            raise DatasetError(
                "a continuation must have tokens, and fit the model's positions with its context",
                values=f"{len(before)} and {len(after)} tokens of {longest}: {context[:60]!r}",
                remedy="Ask with fewer examples before the question, or leave the task out",
            )
    order = sorted(range(len(encoded)), key=lambda index: -sum(map(len, encoded[index])))
    found: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        found |= zip(chunk, _scores(model, [encoded[index] for index in chunk]), strict=True)
        on_pairs(len(chunk))
    return [found[index] for index in range(len(encoded))]


def encode_pair(context: str, continuation: str, processor: "Processor") -> tuple[list[int], list[int]]:
    """Tokens of both; where the two meet, they are those of the whole text."""
    tokenizer = tokenizer_of(processor)
    stripped = context.rstrip()
    if not stripped:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [int(first)], list(tokenizer(context + continuation, add_special_tokens=False)["input_ids"])
    before = raw_tokens(stripped, processor)
    return before, raw_tokens(context + continuation, processor)[len(before) :]


def _scores(model: "PreTrainedModel", batch: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    length = max(len(before) + len(after) for before, after in batch)
    ids = torch.zeros((len(batch), length), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (before, after) in enumerate(batch):
        both = torch.tensor(before + after)
        ids[row, : len(both)], mask[row, : len(both)] = both, 1
    with wide_passes(model):
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
    scores = []
    for row, (before, after) in enumerate(batch):
        told = torch.log_softmax(logits[row, len(before) - 1 : len(before) + len(after) - 1].float(), dim=-1)
        wanted = torch.tensor(after, device=told.device)
        scores.append((float(told.gather(1, wanted[:, None]).sum()), bool((told.argmax(dim=-1) == wanted).all())))
    return scores
