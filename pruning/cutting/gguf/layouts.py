"""llama.cpp's architectures that can compute our decoders, and what each of them can say of a layer.

`deci` reads FFN widths and heads as arrays, one entry a layer; `qwen2vl`, `qwen3`, `qwen3vl` and `gemma3` build every
layer from one number (src/models/ of llama.cpp). There a layer that keeps less is filled up with zeros to the widest:
it computes exactly the same, and takes the widest's room and time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Layout:
    """One of llama.cpp's architectures.

    Attributes:
        name: `general.architecture`; None: `deci`, or `llama` where all layers are alike.
        per_layer: whether each layer has sizes of its own.
        all_heads: whether heads must span the hidden size, so that cut ones are filled up to the dense model's number.
        biased: modules whose biases it reads; None: all.
        attention_norms, ffn_norms: a layer's norms -> llama.cpp's names.
        head_norms: those of queries and keys, of a head's length.
        norm_shift: what transformers adds to the weights of all norms, and the file must therefore have in them.
        activation: of the FFN, as transformers names it.
        windows: whether layers may see a window of the tokens before theirs alone (`gemma3`).
        rotates_pairs: whether it rotates values 2i and 2i + 1 of a head, instead of i and i + d/2 as transformers does.
        multimodal_rotary: whether positions are three numbers a token (M-RoPE, arXiv 2409.12191).
        interleaved_rotary: whether these take turns over the pairs of a head, instead of a run of pairs each.
        scales_rotary: whether it takes factors of the frequencies.
        note: what it computes otherwise.
    """

    name: str | None = None
    per_layer: bool = False
    all_heads: bool = False
    biased: frozenset[str] | None = None
    attention_norms: Mapping[str, str] = field(default_factory=lambda: {"input_layernorm": "attn_norm"})
    ffn_norms: Mapping[str, str] = field(default_factory=lambda: {"post_attention_layernorm": "ffn_norm"})
    head_norms: Mapping[str, str] = field(default_factory=dict)
    norm_shift: float = 0.0
    activation: str = "silu"
    windows: bool = False
    rotates_pairs: bool = False
    multimodal_rotary: bool = False
    interleaved_rotary: bool = False
    scales_rotary: bool = False
    note: str | None = None

    @property
    def norms(self) -> Mapping[str, str]:
        """All of a layer's norms -> llama.cpp's names."""
        return {**self.attention_norms, **self.head_norms, **self.ffn_norms}


_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_ATTENTION_INPUTS = frozenset(f"self_attn.{x}_proj" for x in "qkv")
_DECI = Layout(per_layer=True, rotates_pairs=True, scales_rotary=True)
_QWEN2_VL = Layout(
    "qwen2vl",
    all_heads=True,
    biased=_ATTENTION_INPUTS,
    multimodal_rotary=True,
    note="llama.cpp (seen in llama-cpp-python 0.3.36) does not read the epsilon of qwen2vl's norms, and adds none: "
    "that scales a hidden state of root mean square r by 1 + epsilon / (2 r^2) more than transformers does",
)
_QWEN3 = Layout("qwen3", biased=_ATTENTION_INPUTS, head_norms=_HEAD_NORMS)
_QWEN3_VL = replace(_QWEN3, name="qwen3vl", multimodal_rotary=True, interleaved_rotary=True)
_GEMMA3 = Layout(
    "gemma3",
    biased=frozenset(),
    attention_norms={"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"},
    ffn_norms={"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"},
    head_norms=_HEAD_NORMS,
    norm_shift=1.0,
    activation="gelu_pytorch_tanh",
    windows=True,
)

LAYOUTS: Mapping[str, Layout] = {
    "llama": _DECI,
    "mistral": _DECI,
    "qwen2": _DECI,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3": _QWEN3,
    "qwen3_vl_text": _QWEN3_VL,
    "gemma3_text": _GEMMA3,
}
"""By `model_type` of the text config."""
