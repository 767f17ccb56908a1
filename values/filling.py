"""What a one-decision scan did not measure, from what it did.

A KL grows about as the square of the fraction that is removed, or zeroed. How far the logarithm of a measured one is
from that is interpolated between a decision's measured options, and held beyond them. A decision that was not measured
at all is between its neighbours of the same kind (FFNs, attentions, whole layers).

Tried on a complete scan of the joint space, and dropped (docs/search.md): a shape that all decisions of a kind share,
other powers than the square, interpolation over the logarithm of the fraction, measuring next what the additive program
chooses.

Letters: N decisions, K options of the decision that has most.
"""

import numpy as np

from pruning.arrays import BoolArray, FloatArray
from pruning.planning.space import Space
from values.kl_floor import RELATIVE_SENSITIVITY_FLOOR, relative_floor


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
    for row, amounts, dense in zip(removed, space.amounts, space.dense_units, strict=True):
        row[: len(amounts)] = 1.0 - amounts / dense
    below = exists & (np.arange(measured.shape[1]) < np.array(space.top)[:, None])
    with np.errstate(divide="ignore"):  # of what removes nothing: it was measured, and is not looked at
        excess = np.log(np.maximum(table, floor)) - 2.0 * np.log(removed)
    kinds = [tuple(site.sublayer for site in decision.sites) for decision in space.decisions]
    for kind in dict.fromkeys(kinds):
        members = np.array([n for n, own in enumerate(kinds) if own == kind])
        estimated = _interpolated(removed[members], excess[members], below[members] & ~missing[members])
        kl = np.exp(estimated) * np.square(removed[members])
        table[members] = np.where(missing[members], kl, table[members])
    return table


def _interpolated(removed: FloatArray, excess: FloatArray, known: BoolArray) -> FloatArray:
    """[M, K] `excess` of one kind everywhere, from where it is `known`: nowhere else is it looked at."""
    having = np.flatnonzero(known.any(axis=1))
    curves = []
    for n in having:
        places = np.flatnonzero(known[n])
        order = places[np.argsort(removed[n, places])]
        curves.append((removed[n, order], excess[n, order]))
    found = np.empty_like(excess)
    for index, at in enumerate(removed):
        of_each = np.stack([np.interp(at, *curve) for curve in curves])  # [measured decisions, K]
        right = min(int(np.searchsorted(having, index)), len(having) - 1)
        left = right if int(having[right]) == index else max(right - 1, 0)
        share = np.interp(index, having[[left, right]], [0.0, 1.0]) if left < right else 0.0
        found[index] = of_each[left] * (1.0 - share) + of_each[right] * share
    return found
