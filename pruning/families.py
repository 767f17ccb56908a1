"""Which language models can be pruned, and where their FFN channels are. One row a family.

The table is the only place that knows module names: reading an anatomy, ranking, cutting, evaluating and loading all
go through it.
"""

from dataclasses import dataclass

from pruning.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class FfnFamily:
    """The FFN of one family, relative to a decoder layer.

    Attributes:
        module: the FFN's name in the layer.
        into: linear layers whose output rows are channels (gate, up).
        out: the linear layer whose input columns are channels (down).
        width_attribute: the config's name for the width.
    """

    module: str = "mlp"
    into: tuple[str, ...] = ("gate_proj", "up_proj")
    out: str = "down_proj"
    width_attribute: str = "intermediate_size"


GATED = FfnFamily()

FFN_FAMILIES: dict[str, FfnFamily] = {
    "llama": GATED,
    "mistral": GATED,
    "qwen2": GATED,
    "qwen2_vl_text": GATED,
    "qwen2_5_vl_text": GATED,
    "qwen3": GATED,
}
"""By `model_type` of the text config."""


def ffn_family(text_model_type: str) -> FfnFamily:
    """The row of a family; raises UnsupportedModelError that lists the supported ones."""
    try:
        return FFN_FAMILIES[text_model_type]
    except KeyError:
        raise UnsupportedModelError(
            "the language model's family must be in the support table",
            values=f"model_type={text_model_type!r}",
            remedy=f"Supported: {', '.join(sorted(FFN_FAMILIES))}",
        ) from None
