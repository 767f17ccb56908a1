"""Layer after layer, weights are made anew from inputs that come through the layers before as they are by then.

A layer is first passed by all batches as it was, which says what enters its projections; then its weights are made
anew, put in its place and on the disk, and all batches go through it once more. So weights are fitted to the inputs
that they will have, as in Wanda's, SparseGPT's and GPTQ's own code. The vision tower comes first, then the decoder.
Where weights are to be fitted to the dense model's inputs, nothing is put in a layer's place, and one pass is enough.

Memory holds the front end (embeddings, vision tower) until it has run, then one decoder layer, what its inputs are
summed up in, and hidden states up to a bound. Layers that an earlier run has finished are only passed through.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from pruning.anatomy.dtypes import torch_dtype
from pruning.cutting.made_weights import check_made_weight
from pruning.cutting.rewriting.blocks import Block, Projection, vision_layers
from pruning.cutting.rewriting.layer_inputs import InputRecorder, Inputs, Needs
from pruning.cutting.rewriting.vision_pass import VisionPass
from pruning.data.batches import Batch
from pruning.errors import CheckpointError
from pruning.forward.decoder_pass import DecoderPass
from pruning.forward.input_products import HeldOut
from pruning.forward.layer_source import LayerSource
from pruning.forward.tensor_store import DEFAULT_RESIDENT_BYTES, TensorStore


@dataclass(frozen=True)
class Rewritten:
    """What became of a block.

    Attributes:
        tensors: by their names in the checkpoint.
        notes: for JSON, by the names of the projections' weights: what is worth knowing of each.
    """

    tensors: dict[str, torch.Tensor]
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Rewriter(Protocol):
    """How weights are made anew."""

    @property
    def replaces(self) -> bool:
        """Whether what follows a layer is passed through its new weights; False: through those that it had."""
        ...

    def needs(self, block: Block) -> Needs:
        """What has to be known of the inputs of the block's projections."""
        ...

    def rewrite(
        self, block: Block, projections: Sequence[Projection], weights: Sequence[torch.Tensor], inputs: Inputs | None
    ) -> Rewritten:
        """Of projections that have the same `inputs`, with `weights` [D, A] each; None where nothing is needed."""
        ...

    def weight(self, projection: Projection, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """What the checkpoint's `tensors` say that the weight [D, A] is; None: as it was."""
        ...


class RewrittenBlocks(Protocol):
    """Where finished blocks are kept."""

    def get(self, block: Block) -> Rewritten | None:
        """What `put` was given; None: nothing."""
        ...

    def put(self, block: Block, rewritten: Rewritten) -> None:
        """Keep it."""
        ...


@torch.inference_mode()
def rewrite_blocks(
    source: LayerSource,
    vision: Sequence[Block],
    language: Sequence[Block],
    rewriter: Rewriter,
    kept: RewrittenBlocks,
    batches: Iterable[Batch] | None,
    *,
    num_rows: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
    resident_bytes: int = DEFAULT_RESIDENT_BYTES,
) -> None:
    """Make all blocks anew that `kept` lacks, and keep them there. The model of `source` is changed on the way, if the
    rewriter replaces.

    Args:
        source: of the dense model.
        vision, language: the blocks of each part, all or none of it, in order.
        batches: gone through once a part; None where no block needs anything of its inputs.
        num_rows: conversations in all batches together.
        on_batch: told of progress as (done, total) after each batch and pass.
        resident_bytes: of hidden states in memory; what is more waits in a temporary file.

    Raises:
        InputError: there are no batches, or a disk is full.
        CheckpointError: activations or weights are not finite; layer and projection are named.
    """
    run = _Run(source, rewriter, kept, num_rows, on_batch)
    parts = {blocks: run.missing(blocks) for blocks in (tuple(vision), tuple(language)) if blocks}
    run.passes = sum(run.passes_of(missing) for missing in parts.values())
    if vision:
        with TensorStore(resident_bytes) as store:
            run.vision(vision, parts[tuple(vision)], batches, store)
    if language and parts[tuple(language)]:
        with TensorStore(resident_bytes) as store:
            run.language(language, parts[tuple(language)], batches, store)


@dataclass
class _Run:
    source: LayerSource
    rewriter: Rewriter
    kept: RewrittenBlocks
    num_rows: int
    on_batch: Callable[[int, int], None] | None
    passes: int = 0
    done: int = 0

    def advance(self, rows: int) -> None:
        self.done += rows
        if self.on_batch is not None:
            self.on_batch(self.done, self.num_rows * self.passes)

    def missing(self, blocks: Sequence[Block]) -> list[Block]:
        """Those that no earlier run has finished."""
        return [block for block in blocks if self.kept.get(block) is None]

    def passes_of(self, missing: Sequence[Block]) -> int:
        """Through a front end, once through each layer before the last that is missing, and once more to record; layers
        that are not replaced are recorded on the way."""
        own = missing if self.rewriter.replaces else missing[-1:]
        recorded = sum(self.rewriter.needs(block) is not Needs.NOTHING for block in own)
        return 1 + missing[-1].index + recorded if missing else 0

    def vision(
        self, blocks: Sequence[Block], missing: Sequence[Block], batches: Iterable[Batch] | None, store: TensorStore
    ) -> None:
        """Where weights are replaced, all of the tower's layers hold the new ones in the end: what follows sees through
        them."""
        tower = VisionPass(self.source.model, batches or (), store, on_batch=self.advance) if missing else None
        layers = tower.layers if tower is not None else (vision_layers(self.source.model) or ("", ()))[1]
        for block, layer in zip(blocks, layers, strict=True):
            found, recorder = self.kept.get(block), None
            if found is None:
                assert tower is not None
                recorder = self._recorder(block, layer)
                if recorder is not None:
                    with recorder:
                        tower.through(block.index, layer, recorder.start_batch, advances=not self.rewriter.replaces)
                found = self._rewrite(block, layer, recorder)
            self._replace(block, layer, found)
            if tower is not None and self._is_ahead(block, missing, recorder):
                tower.through(block.index, layer)

    def language(
        self, blocks: Sequence[Block], missing: Sequence[Block], batches: Iterable[Batch] | None, store: TensorStore
    ) -> None:
        if batches is None:
            for block in missing:
                with self.source.layer(block.index) as layer:
                    self._rewrite(block, layer, None)
            return
        held_out = HeldOut(batches)
        decoder_pass = DecoderPass(self.source, held_out, store, on_batch=self.advance)
        for block in blocks[: missing[-1].index + 1]:
            with self.source.layer(block.index) as layer:
                found, recorder = self.kept.get(block), None
                if found is None:
                    recorder = self._recorder(block, layer)
                    if recorder is not None:
                        with recorder:
                            start = with_rows(recorder, held_out.rows)
                            decoder_pass.through(block.index, layer, start, advances=not self.rewriter.replaces)
                    found = self._rewrite(block, layer, recorder)
                if self._is_ahead(block, missing, recorder):
                    self._replace(block, layer, found)
                    decoder_pass.through(block.index, layer)

    def _is_ahead(self, block: Block, missing: Sequence[Block], recorder: InputRecorder | None) -> bool:
        """Whether batches still have to go through the layer to those that are missing behind it."""
        has_advanced = recorder is not None and not self.rewriter.replaces
        return block.index < missing[-1].index and not has_advanced

    def _recorder(self, block: Block, layer: nn.Module) -> InputRecorder | None:
        needs = self.rewriter.needs(block)
        return None if needs is Needs.NOTHING else InputRecorder(layer, block, needs)

    def _rewrite(self, block: Block, layer: nn.Module, recorder: InputRecorder | None) -> Rewritten:
        if recorder is not None:
            recorder.check()
        found = Rewritten({})
        for name in dict.fromkeys(x.shares for x in block.projections):
            own = [x for x in block.projections if x.shares == name]
            weights = [_weight_of(layer, block, x) for x in own]
            inputs = None if recorder is None else recorder.inputs.pop(name)
            made = self.rewriter.rewrite(block, own, weights, inputs)
            found.tensors.update({name: x.cpu().contiguous() for name, x in made.tensors.items()})
            found.notes.update(made.notes)
        for name, tensor in found.tensors.items():
            check_made_weight(tensor, f"{name} of {block}")
        self.kept.put(block, found)
        return found

    def _replace(self, block: Block, layer: nn.Module, found: Rewritten) -> None:
        if not self.rewriter.replaces:
            return
        for projection in block.projections:
            weight = self.rewriter.weight(projection, found.tensors)
            if weight is not None:
                linear: Any = layer.get_submodule(projection.inside)
                linear.weight.copy_(weight)


def with_rows(recorder: InputRecorder, rows: Sequence[torch.Tensor]) -> Callable[[torch.Tensor], None]:
    """Starts a batch by its mask alone: which of its rows are held out follows in order."""
    following = iter(rows)
    return lambda mask: recorder.start_batch(mask, next(following))


def _weight_of(layer: nn.Module, block: Block, projection: Projection) -> torch.Tensor:
    linear: Any = layer.get_submodule(projection.inside)
    weight: torch.Tensor = linear.weight
    if not bool(weight.isfinite().all()):
        raise CheckpointError(
            "weights must be finite numbers", values=f"{projection.inside} of {block} holds NaN or infinity"
        )
    return weight


def in_stored_dtype(projection: Projection, weight: torch.Tensor) -> torch.Tensor:
    """`weight` as the checkpoint stores it."""
    return weight.to(torch_dtype(projection.dtype))
