"""A checkpoint's processor, or a language model's tokenizer: one way to call both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pruning.errors import DatasetError, LopError
from pruning.missing_packages import missing_package
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase
    """A language model has a tokenizer alone."""


_EMBEDDINGS = "_lop_embeddings"


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a model has embeddings for.

    Attributes:
        rows: token ids are below it.
        placeholders: ids that the model replaces by features of a picture, wherever they are.
    """

    rows: int
    placeholders: frozenset[int] = frozenset()


def note_embeddings(processor: "Processor", embeddings: Embeddings) -> None:
    """Keep with a checkpoint's processor what its model has embeddings for: texts are checked against it."""
    setattr(tokenizer_of(processor), _EMBEDDINGS, embeddings)


def embeddings_of(processor: "Processor") -> Embeddings | None:
    """What `note_embeddings` kept; None: nothing is known of the model."""
    found: Embeddings | None = getattr(tokenizer_of(processor), _EMBEDDINGS, None)
    return found


def takes_images(processor: "Processor") -> bool:
    """Whether it is more than the tokenizer of a language model."""
    return hasattr(processor, "tokenizer")


def tokenizer_of(processor: "Processor") -> "PreTrainedTokenizerBase":
    """The tokenizer inside a processor; a tokenizer itself."""
    tokenizer: PreTrainedTokenizerBase = processor.tokenizer if takes_images(processor) else processor
    return tokenizer


def adds_special_tokens(processor: "Processor", text: str) -> bool:
    """Whether the tokenizer is to write its own special tokens (BOS) around `text`, which a chat template rendered.

    As transformers' `apply_chat_template` does when it tokenises: a processor's tokenizer writes them unless the text
    begins with BOS already (LLaVA-1.5's template leaves BOS to it); the template of a language model writes them all.
    """
    if not takes_images(processor):
        return False
    bos = tokenizer_of(processor).bos_token
    return bos is None or not text.startswith(str(bos))


def process(
    processor: "Processor", texts: list[str], images: "Sequence[Image | None]", **kwargs: Any
) -> "dict[str, Any]":
    """Call a processor on texts that its chat template rendered, each with its image or None.

    Raises whatever the processor does: `process_conversations` says of which conversation.
    """
    # A list for each text, which all families take; some count the pictures of each.
    pictures = [[] if image is None else [image] for image in images]
    of_kind: dict[str, Any] = (
        {"images": pictures if any(pictures) else None} if takes_images(processor) else {"return_token_type_ids": False}
    )
    special = adds_special_tokens(processor, texts[0])
    return dict(
        processor(text=texts, padding=True, return_tensors="pt", add_special_tokens=special, **of_kind, **kwargs)
    )


def process_conversations(
    processor: "Processor", texts: list[str], images: "Sequence[Image | None]", ids: Sequence[str], **kwargs: Any
) -> "dict[str, Any]":
    """As `process`, of texts of the conversations `ids`.

    Raises:
        DatasetError: the processor raises something; names the first conversation with which it does so alone.
        MissingExtraError: it asks for a package.
    """
    try:
        return process(processor, texts, images, **kwargs)
    except (LopError, MemoryError):
        raise
    except Exception as error:
        raise _fault(error, processor, texts, images, ids, **kwargs) from error


def _fault(
    error: Exception,
    processor: "Processor",
    texts: list[str],
    images: "Sequence[Image | None]",
    ids: Sequence[str],
    **kwargs: Any,
) -> LopError:
    """What `error` is for the user: the first conversation with which the processor fails alone, or all of them."""
    culprit, reason = named(ids), error
    for text, image, name in zip(texts, images, ids, strict=True):
        try:
            process(processor, [text], [image], **kwargs)
        except Exception as alone:  # noqa: BLE001 (reported below)
            culprit, reason = named([name]), alone
            break
    if (missing := missing_package(reason, of=culprit)) is not None:
        return missing
    files = ", its picture, and processor_config.json and preprocessor_config.json" if takes_images(processor) else ""
    return DatasetError(
        "the model's processor must take every conversation",
        values=f"{culprit}: {reason_of(reason)}",
        remedy=f"Look at this conversation{files} of the model" if files else "Look at this conversation",
    )


def named(ids: Sequence[str]) -> str:
    """Conversations by their ids, of many the first ones."""
    distinct = list(dict.fromkeys(ids))
    if len(distinct) == 1:
        return f"conversation {distinct[0]}"
    more = f" and {len(distinct) - 8} more" if len(distinct) > 8 else ""
    return f"one of conversations {', '.join(distinct[:8])}{more}" if distinct else "a batch"
