"""What a one-decision scan did not measure, from what it did.

The logarithm of the KL that an option costs is taken as that of its removed fraction, squared, plus what is the
decision's own, plus what all decisions of its kind share at that fraction (least squares over what was measured; kinds
are FFNs, attentions, whole layers). What a decision's measured options differ from that is interpolated between them.

Letters: N decisions, K options of the decision that has most.
"""

import numpy as np

from pruning.arrays import BoolArray, FloatArray
from pruning.planning.space import Space
from values.kl_floor import RELATIVE_SENSITIVITY_FLOOR, relative_floor

STIFFNESS = 0.1
"""Of the ridge that holds what is shared near 0: a level that one decision alone was measured at says little."""


def filled_table(space: Space, measured: FloatArray) -> FloatArray:
    """[N, K] `measured` KL, estimated where that is NaN; 0 where a decision has no such option.

    Of every decision the last option was measured, and of every kind another one of some decision.
    """
    exists = np.arange(measured.shape[1]) < space.counts[:, None]
    table = np.where(exists, measured, 0.0)
    missing = np.isnan(table)
    if not missing.any():
        return table
    floor = relative_floor(RELATIVE_SENSITIVITY_FLOOR, table[~missing])
    removed = np.ones_like(table)
    for row, units, dense in zip(removed, space.units, space.dense_units, strict=True):
        row[: len(units)] = 1.0 - units / dense
    below = exists & (np.arange(measured.shape[1]) < np.array(space.top)[:, None])
    with np.errstate(divide="ignore"):
        excess = np.log(np.maximum(table, floor)) - 2.0 * np.log(removed)
    kinds = [tuple(site.sublayer for site in decision.sites) for decision in space.decisions]
    for kind in dict.fromkeys(kinds):
        members = np.array([n for n, own in enumerate(kinds) if own == kind])
        estimated = _filled(removed[members], excess[members], below[members] & ~missing[members])
        kl = np.exp(estimated) * np.square(removed[members])
        table[members] = np.where(missing[members], kl, table[members])
    return table


def _filled(removed: FloatArray, excess: FloatArray, known: BoolArray) -> FloatArray:
    """[M, K] `excess` of one kind everywhere, from where it is `known`: nowhere else is it looked at."""
    decisions, places = np.nonzero(known)
    at, values = np.round(removed[decisions, places], 3), excess[decisions, places]
    levels, level = np.unique(at, return_inverse=True)
    having, own = np.unique(decisions, return_inverse=True)
    rows, first = np.arange(len(values)), len(having)
    design = np.zeros((len(values) + len(levels), first + len(levels)))
    design[rows, own] = design[rows, first + level] = 1.0
    design[len(values) :, first:] = STIFFNESS * np.eye(len(levels))
    solved = np.linalg.lstsq(design, np.concatenate([values, np.zeros(len(levels))]), rcond=None)[0]
    of_decision = np.interp(np.arange(len(removed)), having, solved[:first])
    modelled: FloatArray = of_decision[:, None] + np.interp(removed, levels, solved[first:])
    for n in having:
        kept = np.flatnonzero(known[n])
        order = kept[np.argsort(removed[n, kept])]
        modelled[n] += np.interp(removed[n], removed[n, order], excess[n, order] - modelled[n, order])
    return modelled
