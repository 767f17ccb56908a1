"""Reconstruction: after cutting, the down projection and the output projection are solved anew for the units that stay.

Layer by layer: the inputs of both projections are recorded in the layer as it was, fed by the layers before as they
are now, cut and solved; then the weights are solved from them (`pruning.cutting.least_squares`), the layer is cut, and
all batches go through what is left of it. So weights are fitted to the inputs that they will have. Two passes a layer
that is cut, one for any other, up to the last that is cut.

A layer whose weights are known from an earlier run is only passed through: what was killed goes on there.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.anatomy.dtypes import torch_dtype
from pruning.anatomy.families import Family, family_of
from pruning.anatomy.tensor_roles import decoder_tensor, layer_tensor
from pruning.arrays import IntArray
from pruning.cutting.cut_layers import cut_copy
from pruning.cutting.least_squares import solve_with_chosen_damping
from pruning.cutting.made_weights import check_made_weight
from pruning.data.batches import Batch
from pruning.forward.decoder_pass import DecoderPass
from pruning.forward.input_products import HeldOut, InputProducts, InputRole, ProductRecorder
from pruning.forward.layer_source import LayerSource
from pruning.forward.tensor_store import DEFAULT_RESIDENT_BYTES, TensorStore
from pruning.planning.ranking import Ranking

OUTPUT_ROLE = {Sublayer.ATTENTION: InputRole.ATTENTION_OUT, Sublayer.FFN: InputRole.FFN_OUT}
"""The projection out of each kind of sub-layer."""


@dataclass(frozen=True, slots=True)
class SolvedSite:
    """How a projection was solved.

    Attributes:
        inputs: how many it keeps.
        tokens: that its weights were solved from.
        damping: chosen on held-out tokens; infinite where the weights stay as they were.
        loss, plain_loss: of held-out tokens, the share of the projection's outputs that is lost with and without.
    """

    layer: int
    sublayer: Sublayer
    inputs: int
    tokens: int
    damping: float
    loss: float
    plain_loss: float


@dataclass(frozen=True)
class SolvedLayer:
    """Weights of one layer in the dtype of the checkpoint, by their names in it, and how they were found."""

    tensors: dict[str, torch.Tensor]
    sites: tuple[SolvedSite, ...]

    def note(self) -> str:
        """`sites` as JSON."""
        return json.dumps([asdict(site) for site in self.sites])

    @staticmethod
    def sites_of(note: str) -> tuple[SolvedSite, ...]:
        """The inverse of `note`."""
        return tuple(SolvedSite(**{**site, "sublayer": Sublayer(site["sublayer"])}) for site in json.loads(note))


class SolvedLayers(Protocol):
    """Where solved layers are kept; one is in memory at a time, unless they all are."""

    def get(self, layer: int) -> SolvedLayer | None:
        """What `put` was given for `layer`; None: nothing."""
        ...

    def put(self, layer: int, solved: SolvedLayer) -> None:
        """Keep a layer."""
        ...


class SolvedInMemory:
    """Solved layers of a model in memory."""

    def __init__(self) -> None:
        self.layers: dict[int, SolvedLayer] = {}

    def get(self, layer: int) -> SolvedLayer | None:
        return self.layers.get(layer)

    def put(self, layer: int, solved: SolvedLayer) -> None:
        with torch.inference_mode(False):  # weights are ordinary tensors, which may be trained
            self.layers[layer] = SolvedLayer({name: x.clone() for name, x in solved.tensors.items()}, solved.sites)


@torch.inference_mode()
def reconstruct(
    source: LayerSource,
    batches: Iterable[Batch],
    anatomy: ModelAnatomy,
    architecture: Architecture,
    ranking: Ranking,
    solved: SolvedLayers,
    *,
    num_rows: int,
    propagates: bool = True,
    on_batch: Callable[[int, int], None] | None = None,
    resident_bytes: int = DEFAULT_RESIDENT_BYTES,
) -> None:
    """Solve every projection out of a sub-layer that `architecture` cuts, and keep the weights in `solved`.

    Where the ranking holds means, a down projection's bias makes up for the mean of what its new weights still lose.
    The model is as before in the end.

    Args:
        source: of the dense model.
        batches: taken one at a time, once.
        anatomy: of the dense model; ranking and architecture were checked against it.
        num_rows: conversations in all batches together.
        propagates: whether inputs come through the layers as they are cut; False: as they were.
        on_batch: told of progress as (done, total) after each batch and pass.
        resident_bytes: of hidden states in memory; what is more waits in a temporary file.

    Raises:
        InputError: there are no two conversations, or a disk is full.
        CheckpointError: activations are not finite (layer and projection are named), or a weight that was solved does
            not fit the dtype of the checkpoint.
    """
    kept = ranking.kept_units(architecture)
    to_solve = sorted({site.layer for site in kept})
    known = {layer for layer in to_solve if solved.get(layer) is not None}
    if len(known) == len(to_solve):
        return
    last = max(layer for layer in to_solve if layer not in known)
    passes = 1 + last + sum(layer not in known for layer in to_solve)  # the first is that of the front end
    run = _Run(source, anatomy, architecture, ranking, kept, solved, propagates=propagates)
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if on_batch is not None:
            on_batch(done, num_rows * passes)

    with TensorStore(resident_bytes) as store:
        run.layers(batches, store, last, advance)


@dataclass(frozen=True)
class _Run:
    source: LayerSource
    anatomy: ModelAnatomy
    architecture: Architecture
    ranking: Ranking
    kept: Mapping[Site, IntArray]
    solved: SolvedLayers
    propagates: bool

    def layers(self, batches: Iterable[Batch], store: TensorStore, last: int, on_batch: Callable[[int], None]) -> None:
        family = family_of(self.source.model.config.get_text_config(decoder=True))
        dtypes = {place: x.dtype for x in self.anatomy.tensors if (place := decoder_tensor(x.name))}
        held_out = HeldOut(batches)
        decoder_pass = DecoderPass(self.source, held_out, store, on_batch=on_batch)
        held_out.check()
        for index in range(last + 1):
            dense = self.anatomy.layers[index]
            projections = {
                role: role.projection(family)
                for sublayer, role in OUTPUT_ROLE.items()
                if Site(index, sublayer) in self.kept
            }
            with self.source.layer(index) as layer:
                found = self.solved.get(index) if projections else None
                if projections and found is None:
                    with ProductRecorder(layer, projections, held_out.rows) as recorder:
                        decoder_pass.through(index, layer, recorder.start_batch, advances=False)
                    found = self._solve(layer, dense, family, recorder.products, dtypes)
                    self.solved.put(index, found)
                    del recorder
                if index == last:
                    return
                if self.propagates and any(Site(index, x) in self.architecture.options for x in Sublayer):
                    tensors = {} if found is None else found.tensors
                    decoder_pass.through(index, cut_copy(layer, dense, family, self.architecture, self.kept, tensors))
                else:
                    decoder_pass.through(index, layer)

    def _solve(
        self,
        layer: nn.Module,
        dense: DecoderLayer,
        family: Family,
        products: Mapping[InputRole, InputProducts],
        dtypes: Mapping[tuple[int, str], str],
    ) -> SolvedLayer:
        tensors, sites = {}, []
        for sublayer, role in OUTPUT_ROLE.items():
            if role not in products:
                continue
            name, own = role.projection(family), products[role]
            own.check(dense.index, name)
            linear: Any = layer.get_submodule(name)
            spec = layer_tensor((name, tuple(linear.weight.shape), ""), f"{name}.weight", dense, family)
            units = self.kept[Site(dense.index, sublayer)]
            indices = torch.from_numpy(spec.kept_indices(units)).to(linear.weight.device)
            found = solve_with_chosen_damping(linear.weight, own, indices)
            dtype = torch_dtype(dtypes[dense.index, f"{name}.weight"])
            weight = found.weight.to(dtype)
            tensors[f"{name}.weight"] = weight
            if sublayer is Sublayer.FFN and self.ranking.compensates:
                tensors[f"{name}.bias"] = self._bias(linear, weight, indices, dense.index).to(dtype)
            sites.append(
                SolvedSite(dense.index, sublayer, len(indices), own.tokens, found.damping, found.loss, found.plain_loss)
            )
        for name, tensor in tensors.items():
            check_made_weight(tensor, f"{name} of layer {dense.index}")
        return SolvedLayer({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, tuple(sites))

    def _bias(self, linear: Any, weight: torch.Tensor, kept: torch.Tensor, layer: int) -> torch.Tensor:
        """FLAP's bias for what is lost in spite of the new `weight` [D, K]: W m - W' m[S], m the channels' means."""
        assert self.ranking.ffn_means is not None
        means = torch.from_numpy(self.ranking.ffn_means[layer]).to(linear.weight.device).double()
        bias: torch.Tensor = linear.weight.double() @ means - weight.double() @ means[kept]
        return bias if linear.bias is None else bias + linear.bias.double()
