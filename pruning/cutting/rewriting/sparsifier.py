"""Wanda and SparseGPT as rewriters: each projection by its own density."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from pruning.cutting.rewriting.blocks import Block, Projection
from pruning.cutting.rewriting.damped_sweep import sweep_with_chosen_damping
from pruning.cutting.rewriting.layer_inputs import Inputs, Needs
from pruning.cutting.rewriting.rewriter import Rewritten, in_stored_dtype
from pruning.cutting.rewriting.sparsity import Pattern, sparsegpt, wanda


class LocalStep(StrEnum):
    """Which weights of a layer become zero, and whether the others make up for them."""

    WANDA = "wanda"
    SPARSEGPT = "sparsegpt"


class StepInputs(StrEnum):
    """What a layer's weights are chosen by: REWRITTEN are the inputs that come through the layers before as they are
    written, DENSE those of the dense model, by which a search of densities scores them."""

    REWRITTEN = "rewritten"
    DENSE = "dense"


@dataclass(frozen=True)
class Sparsifier:
    """One local step, with the densities of projections by their weights' names, or one pattern for all. Projections
    that share their inputs have one density."""

    step: LocalStep
    densities: Mapping[str, float]
    pattern: Pattern | None = None
    inputs: StepInputs = StepInputs.REWRITTEN

    @property
    def replaces(self) -> bool:
        return self.inputs is StepInputs.REWRITTEN

    def needs(self, block: Block) -> Needs:
        if all(self._is_dense(projection) for projection in block.projections):
            return Needs.NOTHING
        return Needs.SQUARES if self.step is LocalStep.WANDA else Needs.PRODUCTS

    def _is_dense(self, projection: Projection) -> bool:
        return self.pattern is None and self.densities[projection.name] >= 1.0

    def rewrite(
        self, block: Block, projections: Sequence[Projection], weights: Sequence[torch.Tensor], inputs: Inputs | None
    ) -> Rewritten:
        density = self.densities[projections[0].name]
        if self._is_dense(projections[0]):
            return Rewritten({}, {x.name: _note(x, weight) for x, weight in zip(projections, weights, strict=True)})
        assert inputs is not None, block
        how: dict[str, float | int | None] = {"tokens": inputs.tokens}
        if self.step is LocalStep.WANDA:
            made = tuple(wanda(weight, inputs.squares, density, self.pattern) for weight in weights)
        else:
            assert inputs.products is not None
            swept = sweep_with_chosen_damping(
                weights, inputs.products, lambda weight, factor: sparsegpt(weight, factor, density, self.pattern)
            )
            made = swept.weights
            how |= {"damping": swept.damping, "lost_output": swept.loss}
        tensors = {x.name: in_stored_dtype(x, weight) for x, weight in zip(projections, made, strict=True)}
        return Rewritten(tensors, {x.name: {**_note(x, tensors[x.name]), **how} for x in projections})

    def weight(self, projection: Projection, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        return tensors.get(projection.name)


def _note(projection: Projection, weight: torch.Tensor) -> dict[str, float | int | None]:
    return {"parameters": projection.parameters, "inputs": projection.shape[1], "zeroed": int((weight == 0).sum())}
