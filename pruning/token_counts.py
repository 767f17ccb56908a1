"""How many tokens a model makes of conversations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruning.batches import BatchStream
from pruning.conversations import Conversation
from pruning.errors import DatasetError, LopError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pruning.processor import Processor


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
        DatasetError: the model cannot be asked this, or the picture cannot be read.
        CheckpointError: the model has no chat template.
    """
    image_token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    sequences, answers = [], []
    try:
        for batch in BatchStream([conversation], processor, batch_size=1, max_tokens=1):
            tokens = batch.inputs["input_ids"]
            image = int((tokens == image_token).sum()) if image_token is not None else 0
            of_answers = [span.stop - span.start for span in batch.spans]
            sequences.append((tokens.numel(), image, tokens.numel() - image - sum(of_answers)))
            answers += of_answers
    except LopError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DatasetError(
            "the model's processor must take every conversation", values=f"conversation {conversation.id}: {reason}"
        ) from error
    return TokenCounts(*max(sequences), tuple(answers))
