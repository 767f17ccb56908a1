"""From times of whole layers to times of their halves: what measured and estimated latencies have in common.

Both know two things of a layer: how long it takes without an FFN, with any number of KV groups and with none; and how
long it takes with whole attention and an FFN of any width. What is left of a layer that skips both halves is always
there. Its attention takes what a layer without an FFN takes beyond that, its FFN what a layer takes beyond its whole
attention. So a layer with whole attention takes what is known of it, to the nanosecond.
"""

from abc import abstractmethod
from collections import Counter
from functools import cached_property

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.arrays import IntArray
from pruning.errors import InputError
from pruning.planning.latency_model import LatencyModel
from pruning.planning.workload import Workload

Phases = tuple[IntArray, IntArray]
"""[K] of the prefill and [K] of one decode step, in nanoseconds."""


class LayeredLatency(LatencyModel):
    """Latency of models of `anatomy`, from times of their layers. None of those falls while a layer keeps more."""

    def __init__(self, anatomy: ModelAnatomy, workload: Workload) -> None:
        super().__init__(workload)
        self._groups = tuple(layer.num_kv_groups for layer in anatomy.layers)

    @abstractmethod
    def layer_phases_ns(self, layer: int, widths: IntArray) -> Phases:
        """Of `layer` with whole attention and FFNs of `widths` [K], each at least 1."""

    @abstractmethod
    def attention_phases_ns(self, layer: int, groups: IntArray) -> Phases:
        """Of `layer` without an FFN and with each number of KV `groups` [K], which may be 0."""

    @abstractmethod
    def outside_phases_ns(self) -> tuple[int, int]:
        """Of everything outside of the decoder layers."""

    @abstractmethod
    def untimed(self) -> InputError:
        """Why there is no time for cut attention and skips: see `times_attention`."""

    def site_phases_ns(self, site: Site, units: IntArray) -> Phases:
        layer, dense = site.layer, np.array([self._groups[site.layer]], dtype=np.int64)
        is_ffn = site.sublayer is Sublayer.FFN
        if not self.times_attention:
            if int(units.min()) < (1 if is_ffn else dense[0]):
                raise self.untimed()
            return self.layer_phases_ns(layer, units) if is_ffn else (np.zeros_like(units), np.zeros_like(units))
        if not is_ffn:
            nothing = self.attention_phases_ns(layer, np.zeros(1, dtype=np.int64))
            prefill, decode = self.attention_phases_ns(layer, units)
            return prefill - nothing[0], decode - nothing[1]
        whole, without = self.layer_phases_ns(layer, np.maximum(units, 1)), self.attention_phases_ns(layer, dense)
        return np.where(units > 0, whole[0] - without[0], 0), np.where(units > 0, whole[1] - without[1], 0)

    def fixed_phases_ns(self) -> tuple[int, int]:
        return self._fixed

    @cached_property
    def _fixed(self) -> tuple[int, int]:
        first, further = self.outside_phases_ns()
        if not self.times_attention:
            return first, further
        layers = [Site(layer, Sublayer.ATTENTION) for layer in range(len(self._groups))]
        alike = Counter(self.kind_of(site) for site in layers)
        for site in {self.kind_of(site): site for site in layers}.values():
            prefill, decode = self.attention_phases_ns(site.layer, np.zeros(1, dtype=np.int64))
            count = alike[self.kind_of(site)]
            first, further = first + count * int(prefill[0]), further + count * int(decode[0])
        return first, further
