"""Which language models can be pruned: where their FFN channels, attention heads and norms are. One row a family.

The table is the only place that knows module names: reading an anatomy, ranking, cutting, evaluating, loading and
exporting all go through it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from pruning.anatomy.architecture import Sublayer
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Role(StrEnum):
    """What a run of a projection's rows or columns belongs to."""

    CHANNEL = "channel"
    QUERY = "query"
    KEY = "key"
    VALUE = "value"


def _rows(**rows: tuple[Role, ...]) -> Mapping[str, tuple[Role, ...]]:
    return MappingProxyType({name.replace("__", "."): roles for name, roles in rows.items()})


_GATED_FFN = {"mlp__gate_proj": (Role.CHANNEL,), "mlp__up_proj": (Role.CHANNEL,)}
_ATTENTION = {"self_attn__q_proj": (Role.QUERY,), "self_attn__k_proj": (Role.KEY,), "self_attn__v_proj": (Role.VALUE,)}


@dataclass(frozen=True, slots=True)
class Family:
    """Where the units of one family are; names are relative to a decoder layer.

    Attributes:
        rows: linear layers whose output rows are units, and what the rows are: a fused projection holds several runs,
            one after the other. A bias goes with its rows.
        ffn_out: the linear layer whose input columns are FFN channels (down).
        attention_out: the linear layer whose input columns are the outputs of the query heads.
        attention_norms: the norms before and after attention, which are skipped with it.
        ffn_norms: those of the FFN. A norm that attention and FFN share is neither's: it stays.
        final_norm: the decoder's last norm.
        width_attribute: the config's name for the FFN width.
        rows_from_config: whether the attention's forward splits its fused rows by the numbers in its config.
    """

    rows: Mapping[str, tuple[Role, ...]] = field(default_factory=lambda: _rows(**_GATED_FFN, **_ATTENTION))
    ffn_out: str = "mlp.down_proj"
    attention_out: str = "self_attn.o_proj"
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    ffn_norms: tuple[str, ...] = ("post_attention_layernorm",)
    final_norm: str = "norm"
    width_attribute: str = "intermediate_size"
    rows_from_config: bool = False

    @property
    def ffn_in(self) -> tuple[str, ...]:
        """The linear layers whose output rows are FFN channels (gate, up)."""
        return tuple(name for name, roles in self.rows.items() if Role.CHANNEL in roles)

    @property
    def attention_in(self) -> tuple[str, ...]:
        """The linear layers whose output rows are queries, keys or values."""
        return tuple(name for name, roles in self.rows.items() if Role.CHANNEL not in roles)

    @property
    def attention(self) -> str:
        """The attention module."""
        return self.attention_out.rpartition(".")[0]

    @property
    def ffn(self) -> str:
        """The FFN module."""
        return self.ffn_out.rpartition(".")[0]

    def linears(self, sublayer: Sublayer) -> tuple[str, ...]:
        """The linear layers whose output rows or input columns are units of that half."""
        if sublayer is Sublayer.FFN:
            return *self.ffn_in, self.ffn_out
        return *self.attention_in, self.attention_out

    def norms(self, sublayer: Sublayer) -> tuple[str, ...]:
        """The norms that go with that half."""
        return self.ffn_norms if sublayer is Sublayer.FFN else self.attention_norms

    def sublayer_of(self, inside: str) -> Sublayer | None:
        """The half of a layer that the tensor `inside` (its name inside the layer) goes with; None for neither."""
        module = inside.rpartition(".")[0]
        if module in self.attention_norms or inside.startswith(f"{self.attention}."):
            return Sublayer.ATTENTION
        if module in self.ffn_norms or inside.startswith(f"{self.ffn}."):
            return Sublayer.FFN
        return None


LLAMA_LIKE = Family()
GEMMA_2 = Family(
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    ffn_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
PHI = Family(
    rows=_rows(mlp__fc1=(Role.CHANNEL,), **_ATTENTION),
    ffn_out="mlp.fc2",
    attention_out="self_attn.dense",
    attention_norms=(),  # attention and FFN run side by side behind one norm
    ffn_norms=(),
    final_norm="final_layernorm",
)
PHI3 = Family(
    rows=_rows(mlp__gate_up_proj=(Role.CHANNEL, Role.CHANNEL), self_attn__qkv_proj=(Role.QUERY, Role.KEY, Role.VALUE)),
    rows_from_config=True,
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "gemma": LLAMA_LIKE,  # PaliGemma
        "gemma2": GEMMA_2,  # PaliGemma 2
        "gemma3_text": GEMMA_2,
        "llama": LLAMA_LIKE,  # LLaVA-1.5, LLaVA-NeXT, Idefics3, SmolVLM
        "mistral": LLAMA_LIKE,
        "phi": PHI,  # Bunny
        "phi3": PHI3,
        "qwen2": LLAMA_LIKE,  # LLaVA-OneVision, InternVL
        "qwen2_vl_text": LLAMA_LIKE,
        "qwen2_5_vl_text": LLAMA_LIKE,
        "qwen3": LLAMA_LIKE,
        "qwen3_vl_text": LLAMA_LIKE,
    }
)
"""By `model_type` of the text config."""

_MIXTURE_ATTRIBUTES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_STATE_SPACE_ATTRIBUTES = ("ssm_cfg", "mamba_d_state", "state_size", "mamba_num_heads", "linear_num_value_heads")
_ATTENTION_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


def family_of(text: "PreTrainedConfig") -> Family:
    """The row of a text config's family.

    Raises UnsupportedModelError that names mixture-of-experts and state-space layers, or lists what is supported.
    """
    family = FAMILIES.get(text.model_type)
    kind = _other_layers(text)
    if kind is not None:
        raise UnsupportedModelError(
            "every decoder layer must have attention and a dense FFN",
            values=f"model_type={text.model_type!r} has {kind}",
            remedy="Pruning experts or state-space layers is another problem; no tensor was touched",
        )
    if family is None:
        raise UnsupportedModelError(
            "the language model's family must be in the support table",
            values=f"model_type={text.model_type!r}",
            remedy=f"Supported: {', '.join(sorted(FAMILIES))}",
        )
    return family


def _other_layers(text: "PreTrainedConfig") -> str | None:
    """What kind of layers a config has besides attention and dense FFNs, if it says so."""
    kinds = []
    for name in _MIXTURE_ATTRIBUTES:
        count = getattr(text, name, None)
        if isinstance(count, int) and count > 1:
            kinds.append(f"mixture-of-experts layers ({name}={count})")
            break
    if any(getattr(text, name, None) for name in _STATE_SPACE_ATTRIBUTES):
        kinds.append("state-space layers")
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _ATTENTION_TYPES)
    if others:
        kinds.append(f"layers of other types ({', '.join(others)})")
    return " and ".join(kinds) or None
