"""The decoder layers of a dense model as they will be, one at a time: cut, with what was solved anew in its place."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.anatomy.decoder_view import DecoderView
from pruning.anatomy.families import Family, family_of
from pruning.arrays import IntArray
from pruning.cutting.surgery import Replaced, added_biases, cut_layer
from pruning.forward.layer_source import LayerSlot, LayerSource
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def cut_copy(
    layer: nn.Module,
    dense: DecoderLayer,
    family: Family,
    architecture: Architecture,
    kept: Mapping[Site, IntArray],
    solved: Replaced | None,
    ranking: Ranking | None = None,
) -> nn.Module:
    """A copy of the dense `layer` as `architecture` and `kept` (`Ranking.kept_units`) have it.

    `solved` stands in for weights that would be sliced; where it is None, biases that `ranking` adds do.
    """
    copied = copy.deepcopy(layer)
    others = nn.Identity()  # in the place of layers that nothing looks at
    view = DecoderView(others, (*[others] * dense.index, copied), others, others, family)
    if solved is None:
        solved = {} if ranking is None else added_biases(view, dense, kept, ranking)
    cut_layer(view, dense, architecture, kept, solved)
    return copied


class CutLayers:
    """The layers of `source` as they will be; of each there is a copy beside the dense one.

    Args:
        source: of the dense model.
        anatomy, architecture, ranking: of what is cut, held against one another.
        solved: weights of a layer that were solved anew, by its index; None: it is only cut.
    """

    def __init__(
        self,
        source: LayerSource,
        anatomy: ModelAnatomy,
        architecture: Architecture,
        ranking: Ranking,
        solved: Callable[[int], Replaced | None],
    ) -> None:
        self.model: PreTrainedModel = source.model
        self.slots: tuple[LayerSlot, ...] = source.slots
        self._source, self._anatomy, self._architecture = source, anatomy, architecture
        self._ranking, self._kept, self._solved = ranking, ranking.kept_units(architecture), solved
        self._family = family_of(source.model.config.get_text_config(decoder=True))

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        dense, solved = self._anatomy.layers[index], self._solved(index)
        with self._source.layer(index) as layer:
            yield cut_copy(layer, dense, self._family, self._architecture, self._kept, solved, self._ranking)

    def release_front_end(self) -> nn.Module:
        del self.model
        return self._source.release_front_end()
