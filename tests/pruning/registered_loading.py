"""Loading a folder as somebody does who knows transformers alone."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from tests.tiny_models import IMAGE_FAMILIES


def loaded_by_transformers(folder: Path, family: str) -> PreTrainedModel:
    """The model in `folder`, through the auto class for its kind."""
    auto_class = AutoModelForImageTextToText if family in IMAGE_FAMILIES else AutoModelForCausalLM
    model: PreTrainedModel = auto_class.from_pretrained(folder)
    return model
