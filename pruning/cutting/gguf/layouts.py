"""llama.cpp's architectures that can compute our decoders, and what each of them can say of a layer.

`deci` reads FFN widths and heads as arrays, one entry a layer; all others build every layer from one number. There a
layer that keeps less is filled up with zeros to the widest: it computes exactly the same, and takes the widest's room
and time (src/models/ of llama.cpp).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Layout:
    """One of llama.cpp's architectures.

    Attributes:
        name: `general.architecture`; None: `deci`, or `llama` where all layers are alike.
        per_layer: whether each layer has sizes of its own.
        all_heads: whether heads must span the hidden size, so that cut ones are filled up to the dense model's number.
        modules: a layer's modules besides the usual ones -> llama.cpp's names.
        rotates_pairs: whether it rotates values 2i and 2i + 1 of a head, instead of i and i + d/2 as transformers does.
        multimodal_rotary: whether positions are three numbers a token (M-RoPE, arXiv 2409.12191).
        scales_rotary: whether it takes factors of the frequencies.
        note: what it computes otherwise, though hardly.
    """

    name: str | None = None
    per_layer: bool = False
    all_heads: bool = False
    modules: Mapping[str, str] = field(default_factory=dict)
    rotates_pairs: bool = False
    multimodal_rotary: bool = False
    scales_rotary: bool = False
    note: str | None = None


_DECI = Layout(per_layer=True, rotates_pairs=True, scales_rotary=True)
_QWEN2_VL = Layout(
    "qwen2vl",
    all_heads=True,
    multimodal_rotary=True,
    note="llama.cpp (seen in llama-cpp-python 0.3.36) does not read the epsilon of qwen2vl's norms, and adds none: "
    "where hidden states are tiny, results differ a little from transformers'",
)
_QWEN3 = Layout("qwen3", modules={"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"})

LAYOUTS: Mapping[str, Layout] = {
    "llama": _DECI,
    "mistral": _DECI,
    "qwen2": _DECI,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3": _QWEN3,
}
"""By `model_type` of the text config."""
