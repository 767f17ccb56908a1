"""Rounding and GPTQ as rewriters, in the layout of compressed-tensors' format "pack-quantized".

Of a weight [D, A] it has `weight_packed` [D, A b / 32] int32, `weight_scale` [D, A / g] and `weight_shape` [2] int64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from pruning.anatomy import packed_weights
from pruning.anatomy.dtypes import torch_dtype
from pruning.anatomy.tensor_roles import TensorHeader
from pruning.cutting.rewriting.blocks import Block, Projection
from pruning.cutting.rewriting.damped_sweep import sweep_with_chosen_damping
from pruning.cutting.rewriting.layer_inputs import Inputs, Needs
from pruning.cutting.rewriting.quantisation import IntFormat, Quantised, gptq, round_to_nearest
from pruning.cutting.rewriting.rewriter import Rewritten


class Rounding(StrEnum):
    """How weights are rounded."""

    NEAREST = "rtn"
    GPTQ = "gptq"


def packed_headers(projection: Projection, form: IntFormat) -> dict[str, TensorHeader]:
    """By the names of the tensors in the place of the projection's weight."""
    found = packed_weights.packed_headers(projection.name, projection.shape, projection.dtype, form.bits, form.group)
    return {header[0]: header for header in found}


@dataclass(frozen=True)
class Quantiser:
    """One way of rounding, with the format of each projection by the name of its weight.

    `sees`: whether there is data; rounding to nearest does without. `keeps_zeros`: weights that are 0 stay 0, which
    rounding to nearest does by itself, its numbers being symmetric.
    """

    rounding: Rounding
    formats: Mapping[str, IntFormat]
    sees: bool = True
    keeps_zeros: bool = False

    @property
    def replaces(self) -> bool:
        return True

    def needs(self, block: Block) -> Needs:
        if not block.projections:
            return Needs.NOTHING
        if self.rounding is Rounding.GPTQ:
            return Needs.PRODUCTS
        return Needs.SQUARES if self.sees else Needs.NOTHING

    def rewrite(
        self,
        block: Block,  # noqa: ARG002
        projections: Sequence[Projection],
        weights: Sequence[torch.Tensor],
        inputs: Inputs | None,
    ) -> Rewritten:
        form = self.formats[projections[0].name]  # those that share inputs are of one sub-layer
        how: dict[str, float | int | None] = {"bits": form.bits, "group": form.group}
        dtypes = [torch_dtype(x.dtype) for x in projections]
        if self.rounding is Rounding.NEAREST:
            importance = None if inputs is None else inputs.squares / inputs.squares.mean().clamp(min=1e-30)
            made = [round_to_nearest(w, form, importance, dtype) for w, dtype in zip(weights, dtypes, strict=True)]
        else:
            assert inputs is not None
            assert inputs.products is not None
            latest: dict[int, Quantised] = {}
            dtype_of = {id(w): dtype for w, dtype in zip(weights, dtypes, strict=True)}

            def swept(weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
                zeros = weight == 0 if self.keeps_zeros else None
                latest[id(weight)] = found = gptq(weight, factor, form, dtype_of[id(weight)], zeros)
                return found.weight

            result = sweep_with_chosen_damping(weights, inputs.products, swept)
            made = [latest[id(weight)] for weight in weights]
            how |= {"damping": result.damping, "lost_output": result.loss}
        if inputs is not None:
            how["tokens"] = inputs.tokens
        tensors: dict[str, torch.Tensor] = {}
        for projection, quantised in zip(projections, made, strict=True):
            tensors |= _packed(projection, quantised, form)
        return Rewritten(tensors, {x.name: {"inputs": x.shape[1], **how} for x in projections})

    def weight(self, projection: Projection, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        from compressed_tensors.compressors.pack_quantized import unpack_from_int32

        packed, scales = tensors[f"{projection.name}_packed"], tensors[f"{projection.name}_scale"]
        bits = packed.shape[1] * 32 // projection.shape[1]
        codes = unpack_from_int32(packed, bits, torch.Size(projection.shape))
        return Quantised(codes, scales).weight


def _packed(projection: Projection, quantised: Quantised, form: IntFormat) -> dict[str, torch.Tensor]:
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    return {
        f"{projection.name}_packed": pack_to_int32(quantised.codes.cpu(), form.bits),
        f"{projection.name}_scale": quantised.scales,
        f"{projection.name}_shape": torch.tensor(projection.shape),
    }
