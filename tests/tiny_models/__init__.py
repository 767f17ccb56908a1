"""Tiny random models with real processors, made in milliseconds: one builder a family, and data for them."""

from tests.tiny_models.builders import BUILDERS, IMAGE_FAMILIES, tiny_model
from tests.tiny_models.checkpoints import save_tiny_checkpoint, write_conversations
from tests.tiny_models.pictures import with_pictures
from tests.tiny_models.processor import IMAGE_TOKEN, TEMPLATE, TEXT_TEMPLATE, tiny_processor, tiny_tokenizer

__all__ = [
    "BUILDERS",
    "IMAGE_FAMILIES",
    "IMAGE_TOKEN",
    "TEMPLATE",
    "TEXT_TEMPLATE",
    "save_tiny_checkpoint",
    "tiny_model",
    "tiny_processor",
    "tiny_tokenizer",
    "with_pictures",
    "write_conversations",
]
