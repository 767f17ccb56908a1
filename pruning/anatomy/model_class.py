"""Which class of transformers a config belongs to, and whether such a model can be pruned layer by layer."""

from typing import TYPE_CHECKING

from pruning.anatomy.families import family_of
from pruning.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def model_class(config: "PreTrainedConfig") -> "type[PreTrainedModel]":
    """transformers' class for a config of image-text or language models; raises CheckpointError if it has none."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for auto_class in (AutoModelForImageTextToText, AutoModelForCausalLM):
        try:
            found: type[PreTrainedModel] = auto_class._model_mapping[type(config)]
        except KeyError:
            continue
        return found
    raise CheckpointError(
        "the checkpoint must be an image-text model or a language model", values=f"model_type={config.model_type!r}"
    )


def check_architecture(config: "PreTrainedConfig") -> None:
    """Check, by its config alone, that a model can be pruned.

    Raises as `check_decoder`, and UnsupportedModelError for layers that differ already.
    """
    check_decoder(config)
    if getattr(config.get_text_config(decoder=True), "is_heterogeneous", False):
        raise UnsupportedModelError(
            "a model is planned for once, from its dense checkpoint, whose layers have the sizes of its config",
            values="per_layer_config says that layers differ",
            remedy="If it was pruned, use the dense checkpoint that it was made from",
        )


def check_decoder(config: "PreTrainedConfig") -> None:
    """Check, by its config alone, that a model's decoder is known, in plain numbers, layer by layer.

    Raises:
        UnsupportedModelError: an encoder-decoder, layers that are not in the family table, or quantised weights.
        CheckpointError: neither an image-text model nor a language model.
    """
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            "a model must have a decoder alone",
            values=f"model_type={config.model_type!r} is an encoder-decoder",
            remedy="Cross-attention is not supported; no tensor was touched",
        )
    family_of(text)
    model_class(config)
    quantization = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else type(quantization).__name__
        raise UnsupportedModelError(
            "weights must be in float32, bfloat16 or float16",
            values=f"quantization_config says {method!r}",
            remedy="Prune the unquantised checkpoint, and quantise what comes out",
        )
