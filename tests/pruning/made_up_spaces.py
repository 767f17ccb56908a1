"""Spaces over both halves of every layer of a model: what later axes choose from, and what plans choose from today."""

import itertools

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Option, Site, Sublayer
from pruning.planning.space import Decision, Options, Space


def every_site(anatomy: ModelAnatomy, *, step: int = 1) -> Space:
    """A decision for every site: each number of KV groups, from 0, and of FFN channels in steps of `step`."""
    dense = dense_sites(anatomy)
    decisions = []
    for site, most in dense.items():
        each = step if site.sublayer is Sublayer.FFN else 1
        units = {0, *range(each, most, each), most}
        decisions.append(Decision((site,), (Options(np.array(sorted(units), dtype=np.int64)),)))
    return Space(tuple(decisions), dense)


def whole_layers(anatomy: ModelAnatomy, *, step: int = 1) -> Space:
    """A decision for every layer: any KV groups and FFN channels together, of both the least first."""
    sites = every_site(anatomy, step=step)
    decisions = []
    for attention, ffn in zip(sites.decisions[::2], sites.decisions[1::2], strict=True):
        rows = list(itertools.product(attention.options[0], ffn.options[0]))
        rows.sort(key=lambda row: (row[1].units / sites.dense[ffn.sites[0]] + row[0].units, row[0].units))
        columns: list[list[Option]] = [list(column) for column in zip(*rows, strict=True)]
        decisions.append(Decision((*attention.sites, *ffn.sites), tuple(Options.of(x) for x in columns)))
    return Space(tuple(decisions), sites.dense)


def dense_sites(anatomy: ModelAnatomy) -> dict[Site, int]:
    """Units of every site, attention before FFN, layer by layer."""
    return {
        Site(layer.index, sublayer): anatomy.dense_units(sublayer)[layer.index]
        for layer in anatomy.layers
        for sublayer in (Sublayer.ATTENTION, Sublayer.FFN)
    }
