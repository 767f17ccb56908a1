"""What a model costs, one price a limit kind: the tables of limits and the exact costs of plans are sums of the same.

A price is a fixed part and one part for each site, which only depends on what that site keeps. So the costs of any
architecture add up from tables, and tables are what a plan says of itself, but for one bound from above: the length of
file headers depends on all sites together, and is counted at its longest (`budget.header_bytes_bound`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer, foreign_site
from pruning.anatomy.decoder_layer import TensorSpec
from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.anatomy.packed_weights import FEWER_BITS, GROUP, come_in_groups, packed_weights, saved_bytes
from pruning.arrays import IntArray
from pruning.checkpoints.safetensors_layout import tensor_bytes
from pruning.errors import InputError
from pruning.planning.activations import activation_bytes
from pruning.planning.added_biases import added_biases, bias_parameters
from pruning.planning.cost_table import NEVER
from pruning.planning.latency_model import Latency, LatencyModel
from pruning.planning.limits import Limit, LimitKind
from pruning.planning.space import Options, Space
from pruning.planning.workload import Workload

MOST_SPACES = 4
"""That a price keeps its tables of: some ten kilobytes each."""


class Price(ABC):
    """What every site may cost under one kind of limit.

    Attributes:
        kind: the limit's; the unit of all counts is that of its tables.
        dense: units of the dense model at every site.
        fixed: what no site's option changes.
    """

    kind: LimitKind
    dense: Mapping[Site, int]
    fixed: int

    @abstractmethod
    def of(self, site: Site, options: Options) -> IntArray:
        """[K] cost of each of `options` at `site`. A density changes none: zeros are stored and computed like others.

        Raises:
            InputError: an option that this version cannot price, or costs that are too large to count with.
        """

    @cached_property
    def of_dense(self) -> dict[Site, int]:
        """What each site of the dense model costs."""
        return {site: self.cost_of(site, Option(units)) for site, units in self.dense.items()}

    def cost_of(self, site: Site, option: Option) -> int:
        """What one option costs at `site`; raises as `of`."""
        return int(self.of(site, Options.of([option]))[0])

    @cached_property
    def total(self) -> int:
        """What the dense model costs."""
        return self.fixed + sum(self.of_dense.values())

    def cost(self, architecture: Architecture) -> int:
        """What `architecture` costs. Raises InputError if it is of another model, and as `of`."""
        cost = self.total
        for site, option in self._own_items(architecture):
            cost += self.cost_of(site, option) - self.of_dense[site]
        return cost

    def _own_items(self, architecture: Architecture) -> tuple[tuple[Site, Option], ...]:
        """What is not dense of it; raises InputError if it is of another model."""
        for site, option in architecture.items:
            if not 0 <= option.units <= self.dense.get(site, -1):
                raise foreign_site(site, option, self.dense.get(site))
        return architecture.items

    def limit(self, space: Space, most: int) -> Limit:
        """At most `most`, over what `space` decides; sites that it does not name are fixed, and dense."""
        return Limit(self.kind, most, *self._over(space))

    def _over(self, space: Space) -> tuple[int, tuple[IntArray, ...]]:
        """What `space` does not decide, and the costs [N][K] of what it does."""
        return self.total - sum(self.of_dense[site] for site in space.dense), space.tables(self.of)


@dataclass(frozen=True, slots=True)
class SiteCost:
    """Cost of a site that keeps u > 0 units: `per_unit` u + `whole`, and `added` where that is less than all. A skipped
    site costs nothing."""

    per_unit: int
    whole: int = 0
    added: int = 0


class LinearPrice(Price):
    """A price that is linear in the units of every site, but for what weights in fewer bits save of bytes.

    Args:
        kind: of limit.
        dense: units of the dense model, by site.
        sites: what each costs.
        fixed: the rest.
        packed: the weights of each site that fewer bits make smaller; None where bytes are not what is counted.
    """

    def __init__(
        self,
        kind: LimitKind,
        dense: Mapping[Site, int],
        sites: Mapping[Site, SiteCost],
        fixed: int,
        *,
        packed: Mapping[Site, tuple[TensorSpec, ...]] | None = None,
    ) -> None:
        self.kind, self.dense, self.sites, self.fixed, self._packed = kind, dense, sites, fixed, packed
        # Budgets differ from request to request, not the spaces that plans are made in.
        self._known = lru_cache(MOST_SPACES)(self._shared)

    def _over(self, space: Space) -> tuple[int, tuple[IntArray, ...]]:
        return self._known(space)

    def _shared(self, space: Space) -> tuple[int, tuple[IntArray, ...]]:
        fixed, rows = super()._over(space)
        for row in rows:
            row.setflags(write=False)
        return fixed, rows

    def of(self, site: Site, options: Options) -> IntArray:
        cost, dense = self.sites[site], self.dense[site]
        if cost.per_unit * dense + cost.whole + cost.added >= NEVER // max(len(self.sites), 1):
            raise InputError(
                "the costs of a workload must stay below 2**62",
                remedy="Ask for a smaller batch, or a shorter prompt and output",
            )
        units = options.units
        found: IntArray = units * cost.per_unit + np.where(units > 0, cost.whole, 0)
        if options.bits is not None and self._packed is not None:
            found = found - saved_by_bits(self._packed.get(site, ()), options)
        return found + np.where((units > 0) & (units < dense), cost.added, 0) if cost.added else found

    def cost_of(self, site: Site, option: Option) -> int:
        # In Python's own integers: a plan may say of a workload how much it costs, however much that is.
        cost = self.sites[site]
        if option.units == 0:
            return 0
        found = option.units * cost.per_unit + cost.whole + (cost.added if option.units < self.dense[site] else 0)
        if option.bits is None or self._packed is None:
            return found
        return found - int(saved_by_bits(self._packed.get(site, ()), Options.of([option]))[0])


class LatencyPrice(Price):
    """Nanoseconds of one request of a workload on a device, by what `model` knows of it."""

    kind = LimitKind.LATENCY_MS

    def __init__(self, anatomy: ModelAnatomy, model: LatencyModel) -> None:
        self._model = model
        self._packed = packed_weights(anatomy)
        self.dense = dense_units(anatomy)
        self.fixed = model.fixed_ns()

    def of(self, site: Site, options: Options) -> IntArray:
        return self._model.site_ns(site, options.units, self._saved(site, options))

    def _saved(self, site: Site, options: Options) -> IntArray | None:
        return None if options.bits is None else saved_by_bits(self._packed.get(site, ()), options)

    def latency(self, architecture: Architecture) -> Latency | None:
        """The time of `architecture` by phase; in all it is `cost`. None if the model has no time for it: see
        `LatencyModel.times_attention` and `times_bits`. Raises as `cost`."""
        # Zeros take as long as other weights.
        own = [(site, Option(x.units, x.bits)) for site, x in self._own_items(architecture)]
        cut = [(site, option) for site, option in own if option != Option(self.dense[site])]
        if not self._model.times_attention and any(
            option.units == 0 or site.sublayer is Sublayer.ATTENTION for site, option in cut
        ):
            return None
        if not self._model.times_bits and any(option.bits is not None for _, option in cut):
            return None
        first, further = self._model.fixed_phases_ns()
        for site, option in {**{site: Option(units) for site, units in self.dense.items()}, **dict(cut)}.items():
            options = Options.of([option])
            prefill, decode = self._model.phases_ns(site, options.units, self._saved(site, options))
            first, further = first + int(prefill[0]), further + int(decode[0])
        return Latency.of_phases(first, further, self._model.workload)


@lru_cache(maxsize=64)
def ffn_parameters(anatomy: ModelAnatomy, *, compensates: bool = False) -> Price:
    """Parameters in scope `ffn`, and the biases that compensation adds: what every sparsity comes to."""
    weights = _site_weights(anatomy, compensates)
    each = {layer.index: layer.ffn_parameters_per_channel for layer in anatomy.layers}
    sites = {
        site: SiteCost(each[site.layer], added=weight.added) if site.sublayer is Sublayer.FFN else SiteCost(0)
        for site, weight in weights.parameters.items()
    }
    return LinearPrice(LimitKind.FFN_PARAMETERS, weights.dense, sites, 0)


@lru_cache(maxsize=256)
def parameters(anatomy: ModelAnatomy, *, compensates: bool = False) -> Price:
    """Parameters of the whole model."""
    weights = _site_weights(anatomy, compensates)
    fixed = anatomy.total_parameters - weights.dense_total(weights.parameters)
    return LinearPrice(LimitKind.PARAMETERS, weights.dense, weights.parameters, fixed)


@lru_cache(maxsize=64)
def decoder_parameters(anatomy: ModelAnatomy) -> Price:
    """Parameters of the decoder's layers, norms included."""
    weights = _site_weights(anatomy, compensates=False)
    fixed = anatomy.decoder_parameters - weights.dense_total(weights.parameters)
    return LinearPrice(LimitKind.PARAMETERS, weights.dense, weights.parameters, fixed)


@lru_cache(maxsize=256)
def weight_bytes(anatomy: ModelAnatomy, *, compensates: bool = False, header_bytes: int = 0) -> Price:
    """Weight files: tensors, and `header_bytes` for what stands before them."""
    weights = _site_weights(anatomy, compensates)
    fixed = weights.total_bytes - weights.dense_total(weights.bytes) + header_bytes
    return LinearPrice(LimitKind.DISK_BYTES, weights.dense, weights.bytes, fixed, packed=packed_weights(anatomy))


@lru_cache(maxsize=64)
def decoder_bytes(anatomy: ModelAnatomy) -> Price:
    """Tensors of the decoder's layers, norms included: what targets of searches among bits come to."""
    weights = _site_weights(anatomy, compensates=False)
    shared = anatomy.decoder_parameters - weights.dense_total(weights.parameters)
    fixed = shared * DTYPE_BYTES[anatomy.dtype]
    return LinearPrice(LimitKind.DISK_BYTES, weights.dense, weights.bytes, fixed, packed=packed_weights(anatomy))


@lru_cache(maxsize=256)
def memory_bytes(anatomy: ModelAnatomy, workload: Workload, *, compensates: bool = False) -> Price:
    """Weights, KV cache and activations for `workload`, as `Achieved.memory_bytes`."""
    weights = _site_weights(anatomy, compensates)
    cache = kv_cache_bytes_per_group(anatomy, workload)
    sites = {
        site: SiteCost(cost.per_unit + cache[site.layer], cost.whole, cost.added)
        if site.sublayer is Sublayer.ATTENTION
        else cost
        for site, cost in weights.bytes.items()
    }
    fixed = weights.total_bytes - weights.dense_total(weights.bytes) + activation_bytes(anatomy, workload)
    return LinearPrice(LimitKind.MEMORY_BYTES, weights.dense, sites, fixed, packed=packed_weights(anatomy))


@lru_cache(maxsize=256)
def flops(anatomy: ModelAnatomy, workload: Workload, *, compensates: bool = False) -> Price:
    """Floating-point operations of decoder and output head, a multiply-add counted as two.

    Every position passes each layer's weights once (2 operations a parameter, norms included: under 0.1% of a real
    layer); attention adds 4 x heads x head_dim operations for every position attended to, causally; the head runs
    once for each generated token. The vision tower is not counted. An upper bound for layers with a sliding window:
    they are counted as if they saw everything.
    """
    weights = _site_weights(anatomy, compensates)
    prompt, output = workload.prompt_tokens, workload.output_tokens
    positions = prompt + max(output - 1, 0)  # the last generated token is never fed back
    each = 2 * positions * workload.batch
    attended = 4 * workload.batch * (positions * (positions + 1) // 2)
    sites = {}
    for site, cost in weights.parameters.items():
        layer = anatomy.layers[site.layer]
        seen = attended * layer.heads_per_group * layer.head_dim if site.sublayer is Sublayer.ATTENTION else 0
        sites[site] = SiteCost(cost.per_unit * each + seen, cost.whole * each, cost.added * each)
    outside = anatomy.decoder_parameters - weights.dense_total(weights.parameters)
    head = 2 * anatomy.hidden_size * anatomy.vocab_size * output * workload.batch
    return LinearPrice(LimitKind.FLOPS, weights.dense, sites, outside * each + head)


def kv_cache_bytes_per_group(anatomy: ModelAnatomy, workload: Workload) -> list[int]:
    """[L] keys and values of one KV group for every position of `workload`, in the weights' dtype.

    Layers with a sliding window keep no more positions than it sees.
    """
    positions = workload.prompt_tokens + workload.output_tokens
    each = 2 * workload.batch * DTYPE_BYTES[anatomy.dtype]
    return [each * layer.head_dim * min(positions, layer.window or positions) for layer in anatomy.layers]


@dataclass(frozen=True, eq=False)
class _SiteWeights:
    """Parameters and bytes of every site, and all bytes of the dense model."""

    dense: Mapping[Site, int]
    parameters: Mapping[Site, SiteCost]
    bytes: Mapping[Site, SiteCost]
    total_bytes: int

    def dense_total(self, costs: Mapping[Site, SiteCost]) -> int:
        return sum(cost.per_unit * self.dense[site] + cost.whole for site, cost in costs.items())


@lru_cache(maxsize=64)
def _site_weights(anatomy: ModelAnatomy, compensates: bool) -> _SiteWeights:
    dense = dense_units(anatomy)
    counted = {site: [0, 0, 0, 0] for site in dense}  # parameters and bytes of units, and of what goes with the whole
    total = 0
    for tensor in anatomy.tensors:
        size = tensor_bytes(tensor.shape, tensor.dtype)
        total += size
        if tensor.site is not None:
            first = 0 if tensor.parts else 2
            counted[tensor.site][first] += int(np.prod(tensor.shape, dtype=np.int64))
            counted[tensor.site][first + 1] += size
    for layer in anatomy.layers:  # an anatomy that lists no tensors knows its channels
        counted[Site(layer.index, Sublayer.FFN)][0] = layer.ffn_parameters
    more, more_bytes = dict.fromkeys(dense, 0), dict.fromkeys(dense, 0)
    if compensates:
        more |= {Site(layer, Sublayer.FFN): count for layer, count in enumerate(bias_parameters(anatomy))}
        more_bytes |= {
            Site(layer, Sublayer.FFN): tensor_bytes(bias.shape, bias.dtype)
            for layer, bias in added_biases(anatomy).items()
        }
    return _SiteWeights(
        dense,
        {site: SiteCost(count[0] // dense[site], count[2], more[site]) for site, count in counted.items()},
        {site: SiteCost(count[1] // dense[site], count[3], more_bytes[site]) for site, count in counted.items()},
        total,
    )


def dense_units(anatomy: ModelAnatomy) -> dict[Site, int]:
    return {Site(layer.index, sublayer): layer.units(sublayer) for layer in anatomy.layers for sublayer in Sublayer}


def saved_by_bits(weights: Sequence[TensorSpec], options: Options) -> IntArray:
    """[K] bytes that the bits of `options` save of `weights`; raises as `fewer_bits`."""
    saved = np.zeros(len(options), dtype=np.int64)
    bits = fewer_bits(weights, options)
    for each in FEWER_BITS:
        saved[bits == each] = saved_bytes(weights, options.units[bits == each], each)
    return saved


def fewer_bits(weights: Sequence[TensorSpec], options: Options) -> IntArray:
    """[K] bits of `weights` with each of `options`; 0: they keep their dtype.

    Raises InputError for bits that files do not have, or units that are no whole groups.
    """
    bits = np.array([0 if x is None else x for x in options.bits or (None,) * len(options)], dtype=np.int64)
    packed = bits > 0
    if not (np.isin(bits[packed], FEWER_BITS).all() and come_in_groups(weights, options.units[packed]).all()):
        raise InputError(
            f"weights are stored in {' or '.join(map(str, FEWER_BITS))} bits, where inputs come in whole groups of "
            f"{GROUP}",
            values=f"bits {sorted(set(bits[packed].tolist()))}, units {options.units[packed].tolist()[:8]}",
            remedy="Ask for a plan in a space of this model",
        )
    return bits
