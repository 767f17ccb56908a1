"""Rounding by GPTQ what a plan has in fewer bits, from files to files: what `prune_checkpoint` is to be told.

Layer after layer, as `lop quantise` does it and with its code: inputs come through the layers before as they will be,
cut, solved anew and rounded; what enters the projections of a layer is summed up in the layer as it is cut, and then
they are rounded. So a reconstruction comes first, and GPTQ starts from what it solved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.packed_weights import GROUP
from pruning.checkpoints.headers import StoredTensor
from pruning.cutting.cut_layers import CutLayers
from pruning.cutting.reconstruct_checkpoint import CountedBatches
from pruning.cutting.rewriting.block_files import BlockFiles
from pruning.cutting.rewriting.blocks import Block, language_blocks
from pruning.cutting.rewriting.quantisation import IntFormat
from pruning.cutting.rewriting.quantiser import Quantiser, Rounding
from pruning.cutting.rewriting.rewriter import rewrite_blocks
from pruning.cutting.streaming.outputs import OutputTensor
from pruning.cutting.streaming.packed import PackedTensor
from pruning.cutting.surgery import Replaced
from pruning.forward.layer_source import CheckpointLayers
from pruning.forward.tensor_store import DEFAULT_RESIDENT_BYTES
from pruning.planning.plan import RecoveryStep, rounding_step
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GptqRounding:
    """What weights in fewer bits are to be rounded on; attributes as those of `Reconstruction`.

    Attributes:
        on_rounded: told how every projection was rounded, by the names of weights, once all are.
    """

    batches: CountedBatches
    calibration_id: str
    device: "torch.device"
    on_batch: Callable[[int, int], None] | None = None
    on_rounded: Callable[[Mapping[str, Mapping[str, Any]]], None] | None = None
    resident_bytes: int = DEFAULT_RESIDENT_BYTES

    @property
    def step(self) -> RecoveryStep:
        """The recovery step that plan and config record."""
        return rounding_step(self.calibration_id)

    def round(
        self,
        source: Path,
        anatomy: ModelAnatomy,
        architecture: Architecture,
        ranking: Ranking,
        outputs: Mapping[str, OutputTensor],
        solved: Callable[[int], Replaced | None],
        folder: Path,
    ) -> Mapping[str, StoredTensor]:
        """Codes, scales and shapes of all weights that `outputs` has packed, by their names in the output.

        Args:
            source: the dense checkpoint.
            architecture: the units that sites keep.
            solved: see `CutLayers`.
            folder: where finished layers are kept; those that are there are not rounded again.

        Raises as `rewrite_blocks`.
        """
        folder.mkdir(exist_ok=True)
        files, blocks = BlockFiles(folder), _blocks(anatomy, outputs)
        if any(files.get(block) is None for block in blocks):
            layers = CutLayers(CheckpointLayers(source, self.device), anatomy, architecture, ranking, solved)
            rewrite_blocks(
                layers,
                (),
                blocks,
                Quantiser(Rounding.GPTQ, _formats(outputs)),
                files,
                self.batches,
                num_rows=self.batches.num_rows,
                on_batch=self.on_batch,
                resident_bytes=self.resident_bytes,
            )
        if self.on_rounded is not None:
            self.on_rounded(files.notes())
        return files.stored()


def _blocks(anatomy: ModelAnatomy, outputs: Mapping[str, OutputTensor]) -> tuple[Block, ...]:
    """The decoder layers up to the last one with a packed weight; of each, the projections that are packed, as cut."""
    cut = {x.weight.header[0]: x.weight.header[1] for x in outputs.values() if isinstance(x, PackedTensor)}
    blocks = []
    for block in language_blocks(anatomy):
        own = ((x, cut[x.name]) for x in block.projections if x.name in cut)
        blocks.append(replace(block, projections=tuple(replace(x, shape=(rows, size)) for x, (rows, size) in own)))
    assert sum(len(block.projections) for block in blocks) == len(cut)  # no weight is left to another rounding
    last = max(block.index for block in blocks if block.projections)
    return tuple(blocks[: last + 1])


def _formats(outputs: Mapping[str, OutputTensor]) -> dict[str, IntFormat]:
    packed = (x for x in outputs.values() if isinstance(x, PackedTensor))
    return {x.weight.header[0]: IntFormat(x.bits, GROUP) for x in packed}
