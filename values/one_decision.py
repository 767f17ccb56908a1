"""What each option of each decision costs with all else dense, from the samples that say it.

Letters: L decoder layers, N decisions, K options of the decision that has most.
"""

import math
from collections.abc import Sequence

import numpy as np

from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.planning.space import Space
from storage.records import Sample
from values.decisions import is_of_ffn, kind_of, pruned_decisions, units_in
from values.filling import filled_table
from values.typical_kl import TypicalKl


def one_decision_curves(space: Space, samples: Sequence[Sample]) -> tuple[FloatArray, FloatArray]:
    """Typical log KL [N, K-1] of each option below dense, and flags [N, K-1]: measured at just that option (1.0).

    What was not measured is filled in from what was. Decisions of fewer options repeat their last one below dense.

    Raises:
        InputError: of a kind of decisions other than FFN widths, no option was measured by itself.
    """
    if is_of_ffn(space) and len(set(space.counts.tolist())) == 1:
        curves, flags = _ffn_curves(space, samples)
        return np.array(curves), np.array(flags)
    typical = TypicalKl.of([sample.metrics for sample in samples])
    table = np.full((space.num_decisions, int(space.counts.max())), np.nan)
    table[np.arange(space.num_decisions), space.top] = 0.0
    for sample in samples:
        units = units_in(space, sample.architecture) or ()
        pruned = pruned_decisions(space, units)
        if len(pruned) == 1:
            n = pruned[0]
            table[n, np.flatnonzero(space.units[n] == units[n])] = math.exp(typical(sample.metrics))
    measured = np.isfinite(table)
    measured[np.arange(space.num_decisions), space.top] = False
    for kind in {kind_of(decision) for decision in space.decisions}:
        members = [n for n, decision in enumerate(space.decisions) if kind_of(decision) == kind]
        if not measured[members].any():
            raise InputError(
                "a predictor of more than FFN widths needs samples of single cuts",
                values=f"none of {len(samples)} samples cuts one {' and '.join(kind)} alone",
                remedy="Search with `--method mcts`, which begins with them",
            )
    log_kl = np.log(np.maximum(filled_table(space, table), 1e-12))
    return _padded_below(space, log_kl), _padded_below(space, measured.astype(np.float64))


def _padded_below(space: Space, table: FloatArray) -> FloatArray:
    """[N, K-1] of a table [N, K]: what lies below each decision's last option, its last entry repeated."""
    places = np.minimum(np.arange(table.shape[1] - 1), np.array(space.top)[:, None] - 1)
    return np.take_along_axis(table, places, axis=1)


def _ffn_curves(space: Space, samples: Sequence[Sample]) -> tuple[list[list[float]], list[list[float]]]:
    """Typical log KL [L][K-1] of pruning one layer alone, and flags [L][K-1]: measured at just that level (1.0) or not.

    A level that was not measured is filled in with a model of all that were: a quadratic of the removed fraction, times
    a factor of the layer, times a factor of the level. How far the layer's measured neighbours are from that model is
    interpolated between them and held beyond them. If no one-layer sample exists at all, the quadratic has the mean
    scale of the samples.
    """
    rows = [units.tolist() for units in space.units]
    dense = [row[-1] for row in rows]
    points: list[dict[int, float]] = [{} for _ in dense]
    typical = TypicalKl.of([sample.metrics for sample in samples])
    for sample in samples:
        kept = units_in(space, sample.architecture) or ()
        pruned = pruned_decisions(space, kept)
        if len(pruned) == 1:
            width = kept[pruned[0]]
            points[pruned[0]][width] = typical(sample.metrics) - _log_quadratic(width, dense[pruned[0]])
    if any(points):
        layer_factor, level_factor = _factors(rows, points)
    else:
        mean_log_kl = sum(typical(s.metrics) for s in samples) / max(len(samples), 1)
        layer_factor, level_factor = [mean_log_kl - math.log(len(dense))] * len(dense), [0.0] * (len(rows[0]) - 1)
    curves: list[list[float]] = []
    for row, found, own in zip(rows, points, layer_factor, strict=True):
        widths = sorted(found)
        modelled = [own + float(np.interp(w, row[:-1], level_factor)) for w in widths]
        error = [found[w] - m for w, m in zip(widths, modelled, strict=True)]
        filled = np.interp(row[:-1], widths, error) if widths else np.zeros(len(row) - 1)
        curves.append(
            [
                found.get(w, own + level + float(e)) + _log_quadratic(w, row[-1])
                for w, level, e in zip(row[:-1], level_factor, filled, strict=True)
            ]
        )
    measured = [[float(w in found) for w in row[:-1]] for found, row in zip(points, rows, strict=True)]
    return curves, measured


def _log_quadratic(width: int, dense: int) -> float:
    """log((1 - width / dense)^2)."""
    return 2.0 * math.log(1.0 - width / dense)


def _factors(rows: Sequence[list[int]], points: Sequence[dict[int, float]]) -> tuple[list[float], list[float]]:
    """Logarithms of a factor of each layer [L] and each level [K-1] that fit `points` [L] {width: log KL} best.

    Least squares over the points among the widths `rows` [L][K]. Layers without a point get the mean of the others,
    levels without one are interpolated.
    """
    L, K = len(rows), len(rows[0])
    entries = [
        (layer, row.index(width), value)
        for layer, (row, found) in enumerate(zip(rows, points, strict=True))
        for width, value in found.items()
        if width in row
    ]
    design = np.zeros((len(entries), L + K - 1))
    for n, (layer, level, _) in enumerate(entries):
        design[n, layer] = design[n, L + level] = 1.0
    factors = np.linalg.lstsq(design, np.array([value for _, _, value in entries]), rcond=None)[0]
    seen = sorted({level for _, level, _ in entries})
    level_factor = np.interp(range(K - 1), seen, factors[L:][seen]) if seen else np.zeros(K - 1)
    layer_factor: list[float | None] = []
    for row, found in zip(rows, points, strict=True):
        errors = [y - float(np.interp(w, row[:-1], level_factor)) for w, y in found.items()]
        layer_factor.append(sum(errors) / len(errors) if errors else None)
    known = [f for f in layer_factor if f is not None]
    mean = sum(known) / len(known)
    return [mean if f is None else f for f in layer_factor], [float(f) for f in level_factor]
