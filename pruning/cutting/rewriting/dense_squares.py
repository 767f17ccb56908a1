"""Squares of the inputs of every projection in the dense model: what Wanda scores weights by where densities are
searched.

They are summed up by what sums them up for `lop sparsify`, batch by batch alike. So on one machine, with as many
threads, a mask that a search scores is to the bit that of `lop sparsify --method wanda --inputs dense`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from safetensors.torch import load, save

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.families import FAMILIES
from pruning.cutting.rewriting.blocks import Block
from pruning.cutting.rewriting.layer_inputs import InputRecorder, Needs
from pruning.cutting.rewriting.rewriter import with_rows
from pruning.data.batches import Batch
from pruning.forward.decoder_pass import DecoderPass
from pruning.forward.input_products import HeldOut
from pruning.forward.layer_source import LayerSource
from pruning.forward.tensor_store import DEFAULT_RESIDENT_BYTES, TensorStore

SiteSquares = Mapping[Site, Sequence[torch.Tensor]]
"""[A] in float64 of each projection of a sub-layer, in the order of `Family.linears`."""


@torch.inference_mode()
def measure_squares(
    source: LayerSource,
    blocks: Sequence[Block],
    batches: Iterable[Batch],
    *,
    num_rows: int,
    on_batch: Callable[[int, int], None] | None = None,
    resident_bytes: int = DEFAULT_RESIDENT_BYTES,
) -> bytes:
    """Sums over all tokens but padding, by the names of weights, as a safetensors file: 8 A bytes a projection.

    Args:
        source: of the dense model, of which one layer is in memory at a time.
        blocks: its decoder layers, in order.
        num_rows: conversations in all batches together.
        on_batch: told of progress as (done, total) after each batch and layer; the front end counts as a layer.
        resident_bytes: of hidden states in memory; what is more waits in a temporary file.

    Raises:
        InputError: there are no batches, or a disk is full.
        CheckpointError: activations are not finite; layer and projection are named.
    """
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if on_batch is not None:
            on_batch(done, num_rows * (len(blocks) + 1))

    found: dict[str, torch.Tensor] = {}
    with TensorStore(resident_bytes) as store:
        held_out = HeldOut(batches)
        decoder_pass = DecoderPass(source, held_out, store, on_batch=advance)
        for block in blocks:
            with source.layer(block.index) as layer, InputRecorder(layer, block, Needs.SQUARES) as recorder:
                decoder_pass.through(block.index, layer, with_rows(recorder, held_out.rows))
            recorder.check()
            found |= {x.name: recorder.inputs[x.shares].squares.cpu().clone() for x in block.projections}
    content: bytes = save(found)
    return content


def squares_by_site(anatomy: ModelAnatomy, content: bytes, blocks: Sequence[Block]) -> SiteSquares:
    """What `measure_squares` gave, by site."""
    squares, family = load(content), FAMILIES[anatomy.text_model_type]
    found: dict[Site, tuple[torch.Tensor, ...]] = {}
    for block in blocks:
        own = {x.inside: squares[x.name] for x in block.projections}
        for sublayer in Sublayer:
            found[Site(block.index, sublayer)] = tuple(own[name] for name in family.linears(sublayer))
    return found
