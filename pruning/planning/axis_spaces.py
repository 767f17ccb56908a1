"""Spaces by the name of what they may change: FFN widths, KV groups, whole layers, or all of that together; or how
weights are stored, or how many of them are zeroed.

The floor. A sub-layer that keeps no unit is skipped, and a choice that skips everything is no model, but decisions are
made one by one: no decision knows what the others skip. So the first layer always keeps its smallest option that is
not nothing, in every space; the cheapest choice is then one narrow layer, and still computes something of its input.
Why the first: it is the one that a model can least be without, so that the floor costs no plan that anybody would want.
When it alone goes, KL is 9.5 nats on the reference and on SmolLM2-135M; the next dearest layers cost 3.2 and 4.6.

Letters: L decoder layers, K options of a decision.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.anatomy.packed_weights import GROUP
from pruning.arrays import IntArray
from pruning.errors import InputError
from pruning.planning.bit_spaces import bit_space, with_bits
from pruning.planning.density_spaces import density_space
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO, ffn_levels, ffn_widths
from pruning.planning.space import Decision, Options, Space


class SpaceName(StrEnum):
    """What may be changed.

    FFN: the FFN width of every layer. ATTENTION: its KV groups, with all their query heads; no group skips the
    attention. LAYERS: whether it is there at all. ALL: FFN width and KV groups of every layer, either down to nothing.
    BITS: whether the weights of each sub-layer keep their dtype or have 8 or 4 bits. ALL_BITS: that and all of ALL.
    DENSITY: how many of the weights of each sub-layer are zeroed, which removes nothing.
    """

    FFN = "ffn"
    ATTENTION = "attention"
    LAYERS = "layers"
    ALL = "all"
    BITS = "bits"
    ALL_BITS = "all,bits"
    DENSITY = "density"

    @property
    def has_units(self) -> bool:
        """Whether it removes anything."""
        return self not in (SpaceName.BITS, SpaceName.DENSITY)

    @property
    def has_bits(self) -> bool:
        """Whether it changes how weights are stored."""
        return self in (SpaceName.BITS, SpaceName.ALL_BITS)

    @property
    def has_density(self) -> bool:
        """Whether it sets single weights to zero."""
        return self is SpaceName.DENSITY


SPACES_OF_UNITS = tuple(name for name in SpaceName if not name.has_bits and not name.has_density)
"""Those whose options are numbers of units alone."""


@lru_cache(maxsize=128)
def coarse_space(
    anatomy: ModelAnatomy,
    name: SpaceName,
    *,
    num_levels: int = DEFAULT_NUM_LEVELS,
    round_to: int = DEFAULT_ROUND_TO,
) -> Space:
    """What a search of that name chooses from: `num_levels` FFN widths a layer, multiples of `round_to`, and as many
    evenly spaced numbers of KV groups at most; 0 comes on top where a sub-layer may be skipped.

    Raises InputError as `ffn_levels`, in a space with FFN widths.
    """
    if name is SpaceName.ATTENTION:
        return joint_space(anatomy, None, _group_ladders(anatomy, num_levels))
    if name is SpaceName.LAYERS:
        return layer_space(anatomy)
    if name is SpaceName.BITS:
        return bit_space(anatomy)
    if name is SpaceName.DENSITY:
        return density_space(anatomy)
    if name is SpaceName.ALL_BITS:
        step = math.lcm(round_to, GROUP)
        if min(layer.ffn_width for layer in anatomy.layers) < num_levels * step:
            step = round_to  # then some widths, or all, have no fewer bits
        return with_bits(anatomy, coarse_space(anatomy, SpaceName.ALL, num_levels=num_levels, round_to=step))
    ffn = ffn_levels(anatomy, num_levels=num_levels, round_to=round_to)
    return ffn if name is SpaceName.FFN else joint_space(anatomy, ffn.units, _group_ladders(anatomy, num_levels))


@lru_cache(maxsize=128)
def fine_space(anatomy: ModelAnatomy, name: SpaceName, *, round_to: int, tp_size: int = 1) -> Space:
    """What a plan of that name is made in: FFN widths as `ffn_widths`, each number of KV groups that `tp_size` devices
    can share; 0 comes on top where a sub-layer may be skipped. Of one option a decision may be, unlike in a coarse
    space: what `round_to` and `tp_size` leave of it.

    Raises InputError as `ffn_widths`, or where FFNs stay whole whose widths `tp_size` does not divide.
    """
    if name is SpaceName.ALL_BITS:
        units = fine_space(anatomy, SpaceName.ALL, round_to=math.lcm(round_to, GROUP), tp_size=tp_size)
        return with_bits(anatomy, units, shards=tp_size)
    ffn = ffn_widths(anatomy, round_to=round_to, tp_size=tp_size)
    if name is SpaceName.FFN:
        return ffn
    if name in (SpaceName.ATTENTION, SpaceName.LAYERS, SpaceName.BITS, SpaceName.DENSITY):
        for layer in anatomy.layers:
            if layer.ffn_width % tp_size:
                raise InputError(
                    f"tp_size must divide every FFN width where FFNs stay whole, as in the space '{name}'",
                    values=f"tp_size={tp_size}, layer {layer.index} has {layer.ffn_width} channels",
                    remedy=f"Ask for the space '{SpaceName.ALL}', or another tp_size",
                )
    if name is SpaceName.LAYERS:
        return layer_space(anatomy)
    if name is SpaceName.BITS:
        return bit_space(anatomy, shards=tp_size, least_options=1)  # what fewer devices could store in fewer bits
    if name is SpaceName.DENSITY:
        return density_space(anatomy)
    groups = [_shared_groups(layer, tp_size) for layer in anatomy.layers]
    widths = None if name is SpaceName.ATTENTION else ffn.units
    return joint_space(anatomy, widths, groups, least_options=1)


def name_of(space: Space) -> SpaceName:
    """The name of what `space` decides."""
    if space.has_density:
        return SpaceName.DENSITY
    if space.has_bits:
        return SpaceName.ALL_BITS if any(np.ptp(row) for row in space.units) else SpaceName.BITS
    kinds = {tuple(site.sublayer for site in decision.sites) for decision in space.decisions}
    if kinds == {(Sublayer.FFN,)} and all(row[0] > 0 for row in space.units):
        return SpaceName.FFN
    if kinds == {(Sublayer.ATTENTION,)}:
        return SpaceName.ATTENTION
    return SpaceName.LAYERS if kinds == {(Sublayer.ATTENTION, Sublayer.FFN)} else SpaceName.ALL


def _shared_groups(layer: DecoderLayer, tp_size: int) -> IntArray:
    """Numbers of KV groups, ascending to all, whose heads `tp_size` devices share evenly (`check_tensor_parallel`)."""
    a_group = layer.num_heads // layer.num_kv_groups
    shared = [
        groups
        for groups in range(1, layer.num_kv_groups + 1)
        if not groups * a_group % tp_size and (not groups % tp_size or not tp_size % groups)
    ]
    return np.array(shared, dtype=np.int64)


def joint_space(
    anatomy: ModelAnatomy,
    ffn_widths: Sequence[IntArray] | None,
    kv_groups: Sequence[IntArray] | None,
    *,
    least_options: int = 2,
) -> Space:
    """One decision a site, attention before FFN, layer by layer: among `ffn_widths` [L][K] and `kv_groups` [L][K], both
    ascending and without 0, or 0 where the sub-layer may be skipped. What is None is not decided, nor where there are
    fewer than `least_options`.

    Raises InputError where nothing is left to decide.
    """
    decisions: list[Decision] = []
    dense: dict[Site, int] = {}
    for layer in anatomy.layers:
        for sublayer, ladders in ((Sublayer.ATTENTION, kv_groups), (Sublayer.FFN, ffn_widths)):
            if ladders is None:
                continue
            site, row = Site(layer.index, sublayer), ladders[layer.index]
            row = np.concatenate([np.zeros(int(may_be_skipped(site)), dtype=np.int64), row])
            if len(row) >= least_options:
                decisions.append(Decision((site,), (Options(row),)))
                dense[site] = layer.units(sublayer)
    return _checked(decisions, dense)


def layer_space(anatomy: ModelAnatomy) -> Space:
    """One decision a layer that may go: none of it, or all. Raises InputError if there is none."""
    decisions: list[Decision] = []
    dense: dict[Site, int] = {}
    for layer in anatomy.layers:
        sites = tuple(Site(layer.index, sublayer) for sublayer in (Sublayer.ATTENTION, Sublayer.FFN))
        if all(may_be_skipped(site) for site in sites):
            options = tuple(Options(np.array([0, layer.units(site.sublayer)], dtype=np.int64)) for site in sites)
            decisions.append(Decision(sites, options))
            dense |= {site: layer.units(site.sublayer) for site in sites}
    return _checked(decisions, dense)


def may_be_skipped(site: Site) -> bool:
    """Whether a space lets the sub-layer go; see the module's docstring."""
    return site.layer > 0


def _checked(decisions: Sequence[Decision], dense: Mapping[Site, int]) -> Space:
    if not decisions:
        raise InputError(
            "a space needs a sub-layer that may be cut or skipped, which the first layer's may not be as a whole",
            values="none in this model",
            remedy="Search in another space",
        )
    return Space(tuple(decisions), dense)


def _group_ladders(anatomy: ModelAnatomy, num_levels: int) -> list[IntArray]:
    """[L][K] numbers of KV groups, ascending to all: each number, or `num_levels` of them where there are more."""
    ladders = []
    for layer in anatomy.layers:
        levels = min(num_levels, layer.num_kv_groups)
        # Halves go up, as in `ffn_levels`; steps are one group at least, so no number comes twice.
        steps = np.floor(layer.num_kv_groups * np.arange(1, levels + 1) / levels + 0.5)
        ladders.append(steps.astype(np.int64))
    return ladders
