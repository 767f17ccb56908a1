"""Exact-match accuracy by really generating: the number users would see.

Greedy means the most likely token each time, whatever the checkpoint's generation config says. `generate` fills every
setting that a call leaves open from the model's own generation config: penalties, forced and forbidden words, lengths,
other ways of decoding. Of all that, only the special tokens are part of what the model is.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pruning.checkpoints.generation_file import token_ids
from pruning.checkpoints.processor import process_conversations, tokenizer_of
from pruning.data.chat_rendering import RenderedText, prompts_of, turn_ends
from pruning.data.conversations import Conversation
from pruning.data.input_checks import check_embedded, check_pictures, check_texts
from pruning.errors import CheckpointError
from pruning.forward.decoder_inputs import taking
from pruning.forward.wide_passes import wide_passes

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from pruning.checkpoints.processor import Processor


_ONE_TOKEN = ("bos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class GenerationReport:
    """Answers as generated, greedily, each with the true history before it.

    Attributes:
        accuracy: fraction of answers that match exactly (case and white space folded).
        num_answers: answers generated.
        answers: [conversation][turn] generated text.
        correct: [conversation][turn].
    """

    accuracy: float
    num_answers: int
    answers: list[list[str]] = field(repr=False)
    correct: list[list[bool]] = field(repr=False)


@torch.inference_mode()
def generate_answers(
    model: "PreTrainedModel",
    processor: "Processor",
    conversations: Sequence[Conversation],
    *,
    batch_size: int = 64,
    on_batch: Callable[[int, int], None] | None = None,
) -> GenerationReport:
    """Ask every question of `conversations` and compare with the recorded answers.

    `on_batch(done, total)` is told of progress in answers.

    Raises:
        DatasetError, CheckpointError, MissingExtraError: as `make_batches` does, before anything is generated; or the
            model does not take what its processor makes, or what generation_config.json asks for.
    """
    prompts = [
        (len(prompt), index, turn, prompt)
        for index, conversation in enumerate(conversations)
        for turn, prompt in enumerate(prompts_of(conversation, processor))
    ]
    texts = [RenderedText(conversations[index], prompt, ()) for _, index, _, prompt in prompts]
    check_texts(texts, processor)
    check_pictures(texts, processor)
    ends = turn_ends(processor)  # as `lop data answer` has them
    prompts.sort()  # neighbours of like length waste little padding
    generated: dict[int, dict[int, str]] = defaultdict(dict)
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        images = [conversations[index].open_image() for _, index, _, _ in chunk]
        ids = [conversations[index].id for _, index, _, _ in chunk]
        inputs = process_conversations(processor, [prompt for *_, prompt in chunk], images, ids, padding_side="left")
        for row, (_, index, _, _) in zip(inputs["input_ids"], chunk, strict=True):
            check_embedded(row.unique().tolist(), conversations[index], processor)
        tokenizer = tokenizer_of(processor)
        longest = max(
            len(tokenizer(conversations[i].turns[t].answer, add_special_tokens=False)["input_ids"])
            for _, i, t, _ in chunk
        )
        inputs = {k: v.to(model.device) for k, v in inputs.items()}
        # One token more than the longest answer: an answer that runs on is wrong, and need not be finished.
        with taking(ids, files="generation_config.json"):
            tokens = generate_tokens(model, inputs, max_new_tokens=longest + 1, ends=ends)
        said = processor.batch_decode([x.tolist() for x in tokens], skip_special_tokens=True)
        for (_, index, turn, _), text in zip(chunk, said, strict=True):
            generated[index][turn] = text.strip()
        if on_batch is not None:
            on_batch(min(start + batch_size, len(prompts)), len(prompts))
    answers = [[generated[i][t] for t in range(len(c.turns))] for i, c in enumerate(conversations)]
    correct = [
        [_fold(text) == _fold(turn.answer) for text, turn in zip(texts, c.turns, strict=True)]
        for texts, c in zip(answers, conversations, strict=True)
    ]
    flat = [x for row in correct for x in row]
    return GenerationReport(sum(flat) / len(flat), len(flat), answers, correct)


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def greedy_config(model: "PreTrainedModel", max_new_tokens: int) -> "GenerationConfig":
    """Greedy decoding of at most `max_new_tokens` tokens, with the special tokens of the model's generation config.

    An end of text that it does not name is the one of the model's config. Padding follows an answer that ends before
    others of its batch; where no token is named for it, the end of text is.

    Raises CheckpointError for a special token that is no id.
    """
    from transformers import GenerationConfig

    tokens = {name: next(iter(_ids(model, name)), None) for name in _ONE_TOKEN}
    ends = _ids(model, "eos_token_id")
    pad, rows = tokens["pad_token_id"], model.get_input_embeddings().weight.shape[0]
    if ends and (pad is None or pad >= rows):  # it only fills up, but it is fed to the model
        tokens["pad_token_id"] = ends[0]
    return GenerationConfig(
        **tokens, eos_token_id=ends or None, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, use_cache=True
    )


def generate_tokens(
    model: "PreTrainedModel",
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int,
    ends: Collection[int] = (),
    is_enough: Callable[[int, list[int]], bool] | None = None,
    draw: Callable[[Any, torch.Tensor], torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """The answer's tokens [N] of each left-padded prompt of `inputs`, its end-of-text token included if it got there.

    It is the greedy one, of the scores [B, V] that `draw` makes of the model's where that is given (`drawn_tokens`).

    `inputs` are what the processor makes (input_ids [B, T], ...), on the model's device. Tokens of `ends` end an answer
    beside those that the model names. `is_enough(row, tokens)`, asked after each token, says that no more of that row's
    answer is needed; what follows there is padding. The model is used by one thread at a time. Raises as
    `greedy_config`.
    """
    config = greedy_config(model, max_new_tokens)
    if ends:
        config.eos_token_id = sorted({*(config.eos_token_id or []), *ends})
    length = inputs["input_ids"].shape[1]
    stopping = None if is_enough is None else [_stopping(is_enough, length)]
    processors = [_check_finite] if draw is None else [_check_finite, draw]
    with _own_config(model, config), wide_passes(model):
        tokens = model.generate(
            **inputs, generation_config=config, logits_processor=processors, stopping_criteria=stopping
        )
    new = tokens[:, length:]
    ends = torch.tensor(config.eos_token_id or [-1], device=new.device)
    return [row[: _length(torch.isin(row, ends))] for row in new]


def _stopping(is_enough: Callable[[int, list[int]], bool], start: int) -> Callable[..., torch.Tensor]:
    """A stopping criterion of transformers: which rows [B] are done, by what they say from `start` on."""
    done: set[int] = set()

    def criterion(tokens: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        said = tokens[:, start:].tolist()
        done.update(row for row, own in enumerate(said) if row not in done and is_enough(row, own))
        return torch.tensor([row in done for row in range(len(said))], device=tokens.device)

    return criterion


def _length(is_end: torch.Tensor) -> int:
    """Tokens up to the first end, with it: what follows is padding, which not every tokenizer calls special."""
    found = is_end.nonzero()
    return len(is_end) if len(found) == 0 else int(found[0]) + 1


@contextmanager
def _own_config(model: "PreTrainedModel", config: "GenerationConfig") -> Iterator[None]:
    """`config` is the model's own meanwhile: `generate` would fill it up with what the model's has besides."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


def _check_finite(_tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A logits processor: of what is not a number `generate` would take the first token, and answer with it.

    A token that a model rules out may have minus infinity, the most likely one of a model that works never.
    """
    largest = scores.amax(dim=-1)  # NaN where any is
    if not bool(largest.isfinite().all()):
        raise CheckpointError(
            "a model's logits must be numbers",
            values="NaN or infinity for the next token",
            remedy="Its weights are broken, or its activations overflow its dtype: save or download it again",
        )
    return scores


def _ids(model: "PreTrainedModel", name: str) -> list[int]:
    """The special token `name` by the generation config, else by the model's config: one id or several, or none.

    A negative one says that there is none.
    """
    text = model.config.get_text_config(decoder=True)
    named = (getattr(config, name, None) for config in (model.generation_config, model.config, text))
    value: Any = next((value for value in named if value is not None), None)
    return [x for x in token_ids(name, value) if x >= 0]
