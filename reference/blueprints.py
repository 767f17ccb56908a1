"""The two models that `python -m reference.build` can make: everything in which their builds differ.

World, data, stages and curriculum are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, ProcessorMixin

from reference import gemma, llava
from reference.batches import Curriculum
from reference.forward import VisionLanguageModel
from reference.layout import Layout
from reference.train_language import LanguageSettings
from reference.train_vision import VisionSettings


class ModelName(StrEnum):
    """Of the models that are shipped."""

    REFERENCE = "reference"
    SECOND = "second"


@dataclass(frozen=True)
class Blueprint:
    """How one of the models is made.

    Attributes:
        name: which one.
        family: what it is, for its card; so are `parts` and `purpose`.
        folder: where it is shipped, below the package's folder: its files are in `model` there.
        dtype: what its weights are stored in; they are trained in float32 and measured as stored.
        writes_data: whether the conversations are written beside it.
    """

    name: ModelName
    family: str
    parts: str
    purpose: str
    folder: str
    layout: Layout
    build_model: Callable[[PreTrainedTokenizerFast], VisionLanguageModel]
    build_processor: Callable[[PreTrainedTokenizerFast], ProcessorMixin]
    dtype: torch.dtype
    vision: VisionSettings
    language: LanguageSettings
    writes_data: bool

    @property
    def out(self) -> Path:
        """Where its build writes by default: below it, `model`."""
        return Path(__file__).parent / self.folder


BLUEPRINTS = {
    blueprint.name: blueprint
    for blueprint in (
        Blueprint(
            name=ModelName.REFERENCE,
            family="LLaVA",
            parts="CLIP vision tower, two-layer projector, Llama text model",
            purpose="It was made so that pruning hurts: its feed-forward layers are as narrow as its world allows.",
            folder="",
            layout=llava.LAYOUT,
            build_model=llava.build_model,
            build_processor=llava.build_processor,
            dtype=torch.float32,
            vision=VisionSettings(),
            language=LanguageSettings(),
            writes_data=True,
        ),
        Blueprint(
            name=ModelName.SECOND,
            family="Gemma 3",
            parts="SigLIP vision tower, linear projector, Gemma text model",
            purpose=(
                "It learned the reference model's world by the reference's recipe, and is asked the same questions\n"
                "(`reference/data`): what was chosen on one of the two can be checked on the other."
            ),
            folder="second",
            layout=gemma.LAYOUT,
            build_model=gemma.build_model,
            build_processor=gemma.build_processor,
            dtype=torch.bfloat16,
            vision=VisionSettings(steps=1000, asks_cells=True),
            language=LanguageSettings(tokens=168, steps=2200, norm_lr=3e-3, curriculum=Curriculum(400, 700, 1200)),
            writes_data=False,
        ),
    )
}
