"""A bound on the memory that a forward pass takes besides weights and KV cache.

Letters: B batch, P prompt tokens, O output tokens, D model width, W the dense model's widest FFN, H query heads, G KV
groups, d head size, V vocabulary. Each in the weights' dtype unless said otherwise, of one layer: layers run one after
the other. The bound is the largest of three moments, and for every one the logits of the last position in float32:

    prompt      B P (2 D + 4 H d + 3 W)                       residual stream and its normalised copy; queries, keys and
                                                              values repeated for every head, attention's output; gate,
                                                              up and their product
    next token  B (2 D + 4 H d + 3 W) + 2 B (P + O) (H + G) d keys and values of a layer, copied to append the token and
                                                              repeated for every head
    image       B N (2 E + 4 E + 2 F)                         N patches, E width and F FFN width of the vision tower
    logits      4 B V

A sum of what a layer holds at different times, of the dense widths, so pruned models need less. Not counted: attention
scores, which kernels (PyTorch's scaled_dot_product_attention, FlashAttention) do not write out; masks, which prompts of
one length do without; what the framework itself takes; vision towers without a table of positions (Qwen2-VL's, whose
images have any size). Others are known by theirs, one image to a sequence.
"""

import re
from functools import lru_cache

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.planning.workload import Workload

_POSITIONS = re.compile(r"vision.*position_embedding\.weight$")
_VISION_LAYER = re.compile(r"vision.*layers\.\d+\..*weight$")


@lru_cache(maxsize=256)
def activation_bytes(anatomy: ModelAnatomy, workload: Workload) -> int:
    """The bound, for the decoder and vision tower of `anatomy`, dense or pruned."""
    batch, prompt = workload.batch, workload.prompt_tokens
    layers = anatomy.layers
    heads = max(x.num_heads * x.head_dim for x in layers)
    grouped = max((x.num_heads + x.num_kv_groups) * x.head_dim for x in layers)
    token = 2 * anatomy.hidden_size + 4 * heads + 3 * max(x.ffn_width for x in layers)
    prefill = batch * prompt * token
    decode = batch * token + 2 * batch * (prompt + workload.output_tokens) * grouped
    values = max(prefill, decode, batch * vision_values(anatomy))
    return values * DTYPE_BYTES[anatomy.dtype] + 4 * batch * anatomy.vocab_size


def vision_values(anatomy: ModelAnatomy) -> int:
    """Activations that one image needs at once in a layer of the vision tower; 0 if the anatomy does not tell."""
    positions = _position_table(anatomy)
    if positions is None:
        return 0
    patches, width = positions
    ffn = max((max(t.shape) for t in anatomy.tensors if _VISION_LAYER.search(t.name) and len(t.shape) == 2), default=0)
    return patches * (6 * width + 2 * ffn)


def vision_patches(anatomy: ModelAnatomy) -> int:
    """Positions of one image in the vision tower; 0 if the anatomy does not tell."""
    positions = _position_table(anatomy)
    return 0 if positions is None else positions[0]


def _position_table(anatomy: ModelAnatomy) -> tuple[int, int] | None:
    """The shape [N, E] of the vision tower's table of positions."""
    found = next((t.shape for t in anatomy.tensors if _POSITIONS.search(t.name)), None)
    return None if found is None else (found[0], found[1])
