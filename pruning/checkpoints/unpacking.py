"""Weights in few bits, as `lop apply` and `lop quantise` write them, as ordinary tensors of a loaded model.

compressed-tensors unpacks them by a hook in the first pass. That is too late for who changes a model before it: in
inference mode they come out as tensors that cannot be widened, and the model rounds its weights on every pass, with
scales in whatever dtype it has by then.
"""

from typing import TYPE_CHECKING

import torch

from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unpack_weights(model: "PreTrainedModel") -> None:
    """Give each packed weight of `model` its values, rounded to the dtype that the model was loaded in, for good.

    Raises UnsupportedModelError if transformers loaded it otherwise than by compressed-tensors.
    """
    compressor = getattr(getattr(model, "hf_quantizer", None), "compressor", None)
    if compressor is None:
        raise UnsupportedModelError(
            "weights in few bits must be those of compressed-tensors, as `lop apply` and `lop quantise` write them",
            values=str(getattr(model.config, "quantization_config", None)),
            remedy="Measure the checkpoint that this one was quantised from",
        )
    from compressed_tensors.compressors import decompress_module

    with torch.inference_mode(False), torch.no_grad():
        for module in list(model.modules()):
            decompress_module(module, leave_decompressed=False)
    compressor.remove_decompression_hook(model)
