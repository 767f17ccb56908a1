"""A checkpoint's processor, or a language model's tokenizer: one way to call both."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    Processor: TypeAlias = ProcessorMixin | PreTrainedTokenizerBase
    """A language model has a tokenizer alone."""


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
    """Call a processor on texts that its chat template rendered, each with its image or None."""
    # A list for each text, which all families take; some count the pictures of each.
    pictures = [[] if image is None else [image] for image in images]
    of_kind: dict[str, Any] = (
        {"images": pictures if any(pictures) else None} if takes_images(processor) else {"return_token_type_ids": False}
    )
    special = adds_special_tokens(processor, texts[0])
    return dict(
        processor(text=texts, padding=True, return_tensors="pt", add_special_tokens=special, **of_kind, **kwargs)
    )
