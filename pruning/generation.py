"""Exact-match accuracy by really generating: the number users would see."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pruning.chat_rendering import RenderedText, prompts_of
from pruning.conversations import Conversation
from pruning.decoder import taking
from pruning.input_checks import check_embedded, check_pictures, check_texts
from pruning.processor import process_conversations, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.processor import Processor


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
            tokens = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=longest + 1)
        said = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
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
