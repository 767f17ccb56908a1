"""KV groups put in ranking order once, each with all its query heads: then any number of them is a prefix slice of the
query, key, value and output projections, without a copy."""

from collections.abc import Sequence
from typing import Any

from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.anatomy.decoder_view import DecoderView
from pruning.anatomy.layer_config import LayerConfig
from pruning.checkpoints.resizing import weights_of
from pruning.forward.sliced_linear import OutputSolver, SlicedLinear, WeightMasker, WeightRounder, output_of
from pruning.planning.ranking import Ranking

_MADE_ANEW = -1
"""In the place of the groups of a layer whose weights are no slices now."""


class SlicedAttention:
    """The attention projections of a model whose KV groups are reordered in place, which leaves its function as it was.

    Positions, the norms of queries and keys (Qwen3, Gemma 3, Phi) and the mask are the same for all heads, and queries
    find their keys by `num_key_value_groups`, the query heads of a group, which stays: rows, columns and the numbers of
    heads are all that has to follow.
    """

    def __init__(
        self,
        view: DecoderView,
        layers: Sequence[DecoderLayer],
        ranking: Ranking,
        solver: OutputSolver | None = None,
    ) -> None:
        self._layers, self._solver = layers, solver
        orders = ranking.kv_groups or (None,) * len(layers)
        self._projections = [
            [SlicedLinear(linear, spec, order) for linear, spec in weights_of(view, layer, Sublayer.ATTENTION)]
            for layer, order in zip(layers, orders, strict=True)
        ]
        self._modules: list[Any] = [layer.get_submodule(view.family.attention) for layer in view.layers]
        self._rows_from_config = view.family.rows_from_config
        self._configs = [module.config for module in self._modules] if self._rows_from_config else []
        self.dense_groups = tuple(layer.num_kv_groups for layer in layers)
        self._groups = list(self.dense_groups)

    def slice(self, groups: Sequence[int]) -> None:
        """Let every layer keep its `groups` [L] best KV groups; of one that keeps none nothing is left to run."""
        for index, kept in enumerate(groups):
            if kept != self._groups[index]:
                self._groups[index] = kept  # first: what is interrupted here must be undone
                for projection in self._projections[index]:
                    projection.keep(kept)
                if self._solver is not None and 0 < kept < self.dense_groups[index]:
                    output_of(self._projections[index]).solve(Site(index, Sublayer.ATTENTION), kept, self._solver)
                self._count(index, kept)

    def round(self, layer: int, groups: int, bits: int, rounder: WeightRounder) -> None:
        """Let the `groups` that `layer` was sliced to be in `bits`, until it is sliced again."""
        self._groups[layer] = _MADE_ANEW
        for index, projection in enumerate(self._projections[layer]):
            projection.round(Site(layer, Sublayer.ATTENTION), index, groups, bits, rounder)

    def mask(self, layer: int, density: float, masker: WeightMasker) -> None:
        """Let `layer`, which keeps all groups, keep the share `density` of its weights, until it is sliced again."""
        self._groups[layer] = _MADE_ANEW
        for index, projection in enumerate(self._projections[layer]):
            projection.mask(Site(layer, Sublayer.ATTENTION), index, density, masker)

    def _count(self, index: int, groups: int) -> None:
        """The numbers that attention code reads beside its weights; see `pruning.checkpoints.resizing.set_counts`."""
        module, heads = self._modules[index], groups * self._layers[index].heads_per_group
        for name, count in (("num_heads", heads), ("num_key_value_heads", groups)):
            if hasattr(module, name):
                setattr(module, name, count)
        if self._rows_from_config:
            config = self._configs[index]
            is_dense = groups == self.dense_groups[index]
            module.config = (
                config if is_dense else LayerConfig(config, num_attention_heads=heads, num_key_value_heads=groups)
            )
