"""Rotary embeddings of a text config as llama.cpp has them: a base, a factor for each pair of values, and a scale."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pruning.cutting.gguf.layouts import Layout
from pruning.cutting.gguf.tensor_types import Float32Array
from pruning.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

STATIC_SCALINGS = ("default", "linear", "llama3", "yarn")
"""Scalings whose frequencies are the same for every prompt; `longrope` chooses its by the length, and
`dynamic` past the length that the model was made for."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """Attributes:
    freq_base: theta; pair i of a head of d values turns by theta^(-2i/d) a position.
    freq_factors: [d/2] what each of these frequencies is divided by (`rope_freqs.weight`); None: by 1.
    attention_factor: what sine and cosine are multiplied with (yarn; YaRN, arXiv 2309.00071, eq. 22).
    sections: of how many pairs each of a token's three positions turns (M-RoPE); None: a token has one position.
    note: which pairs llama.cpp turns otherwise.
    """

    freq_base: float
    freq_factors: Float32Array | None
    attention_factor: float
    sections: tuple[int, ...] | None = None
    note: str | None = None


def rotary_of(text: "PreTrainedConfig", head_dim: int, layout: Layout) -> Rotary:
    """What `text` says, by transformers' formulas; raises UnsupportedModelError for what `layout` has no key for."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = dict(text.rope_parameters)
    kind = parameters.get("rope_type", "default")
    sections = parameters.get("mrope_section")
    if (sections is not None) != layout.multimodal_rotary:
        raise UnsupportedModelError(
            f"positions must be {'three numbers' if layout.multimodal_rotary else 'one number'} a token, as "
            f"llama.cpp's {layout.name or 'deci'} architecture has them",
            values=f"mrope_section={sections} (M-RoPE)",
        )
    if kind == "dynamic":
        kind = "default"  # which it is up to `max_position_embeddings`, and an export's context ends there
    if kind != "default" and not layout.scales_rotary:
        raise UnsupportedModelError(
            f"rotary embeddings must not be scaled in llama.cpp's {layout.name} architecture",
            values=f"rope_type={kind!r}",
        )
    if kind not in STATIC_SCALINGS:
        raise UnsupportedModelError(
            "rotary frequencies must be the same for every prompt length",
            values=f"rope_type={kind!r}",
            remedy=f"Scalings that can be exported: {', '.join(STATIC_SCALINGS)}",
        )
    share = float(parameters.get("partial_rotary_factor", getattr(text, "partial_rotary_factor", None) or 1.0))
    if share != 1.0:
        raise UnsupportedModelError(
            "rotary embeddings must cover whole heads",
            values=f"partial_rotary_factor={share}",
            remedy="llama.cpp's architectures for it rotate all values of a head",
        )
    base = float(parameters["rope_theta"])
    if kind == "default":
        if sections is not None and layout.interleaved_rotary:
            return _interleaved(base, list(map(int, sections)), head_dim // 2, int(text.max_position_embeddings))
        return Rotary(base, None, 1.0, None if sections is None else tuple(map(int, sections)))
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[kind](text)
    plain = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    return Rotary(base, (plain / frequencies.double().numpy()).astype(np.float32), float(attention_factor))


def _interleaved(base: float, sections: list[int], num_pairs: int, context: int) -> Rotary:
    """M-RoPE whose positions take turns: pair i belongs to position i % 3 (time, height, width) for as many turns as
    that position's section has. Of the others, transformers gives all to time.

    llama.cpp gives them to a fourth position, which is 0. Those of time's turn are won back by a section that is as
    long as there are turns; the rest stays unturned.
    """
    time = max(sections[0], -(-num_pairs // 3), num_pairs - sum(sections[1:]))
    lost = [pair for pair in range(num_pairs) if pair % 3 and pair // 3 >= sections[pair % 3]]
    note = None
    if lost:
        angle = context * base ** (-lost[0] / num_pairs)
        note = (
            f"llama.cpp does not turn {len(lost)} of the {num_pairs} pairs of values of a head that rotary embeddings "
            f"turn slowest: transformers turns them by {angle:.2g} radians at most in {context:,} tokens"
        )
    return Rotary(base, None, 1.0, (time, *sections[1:]), note)
