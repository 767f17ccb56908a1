"""How many tokens a model makes of conversations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.data.batches import BatchStream
from pruning.data.conversations import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pruning.checkpoints.processor import Processor


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Of one conversation.

    Attributes:
        total: of its longest sequence, which is the whole of it with most chat templates.
        image: of those, its picture's.
        prompt: of those, what is neither picture nor answer: questions, and what the template writes.
        answers: of each answer, end-of-turn token included.
    """

    total: int
    image: int
    prompt: int
    answers: tuple[int, ...]


def max_positions(config: "PreTrainedConfig") -> int | None:
    """How long a sequence a model was made for, in tokens; None if its config does not say."""
    positions: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return positions


def count_tokens(conversation: Conversation, processor: "Processor", config: "PreTrainedConfig") -> TokenCounts:
    """What `processor` makes of `conversation`, its picture included.

    Raises:
        DatasetError: the model's template or processor does not take it, or the picture cannot be read.
        CheckpointError: the model has no chat template, or a token no embedding.
        MissingExtraError: the processor asks for a package.
    """
    image_token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    sequences: list[tuple[int, int, int]] = []
    answers: list[int] = []
    for batch in BatchStream([conversation], processor, batch_size=1, max_tokens=1):
        tokens = batch.inputs["input_ids"]
        image = int((tokens == image_token).sum()) if image_token is not None else 0
        of_answers = [span.stop - span.start for span in batch.spans]
        sequences.append((tokens.numel(), image, tokens.numel() - image - sum(of_answers)))
        answers += of_answers
    return TokenCounts(*max(sequences), tuple(answers))
