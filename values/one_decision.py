"""What each option of each decision costs with all else dense, from the samples that say it.

Letters: N decisions, K options of the decision that has most.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pruning.arrays import FloatArray
from pruning.errors import InputError
from pruning.planning.space import Decision, Options, Space
from storage.records import Sample
from values.decisions import is_of_ffn, kind_of, padded, pruned_decisions, units_in
from values.filling import filled_table
from values.typical_kl import TypicalKl


def one_decision_curves(space: Space, samples: Sequence[Sample]) -> tuple[FloatArray, FloatArray]:
    """Typical log KL [N, K-1] of each option below dense, and flags [N, K-1]: measured at just that option (1.0).

    What was not measured is filled in from what was, at the space's own options or at others. Decisions of fewer
    options repeat their last one below dense. Of FFN widths that were never cut one by one, the log KL is that of the
    squared removed fraction, at the mean scale of the samples.

    Raises:
        InputError: of a kind of decisions other than FFN widths, nothing was measured by itself.
    """
    typical = TypicalKl.of([sample.metrics for sample in samples])
    found: list[dict[int, float]] = [{} for _ in space.decisions]
    for sample in samples:
        units = units_in(space, sample.architecture) or ()
        pruned = pruned_decisions(space, units)
        # Sites that are decided together have no options but those of the space.
        if len(pruned) == 1 and (len(space.decisions[n := pruned[0]].sites) == 1 or units[n] in space.units[n]):
            found[n][units[n]] = typical(sample.metrics)
    below = [row[:-1] for row in space.units]
    if is_of_ffn(space) and not any(found):
        scale = sum(typical(sample.metrics) for sample in samples) / max(len(samples), 1) - math.log(len(found))
        removed = 1.0 - padded(below) / space.dense_units[:, None]
        return scale + 2.0 * np.log(removed), np.zeros(removed.shape)
    _check_scanned(space, found, len(samples))
    curves = _filled(space, found)
    flags = [[float(units in own) for units in row.tolist()] for own, row in zip(found, below, strict=True)]
    return _padded(curves), _padded(flags)


def _check_scanned(space: Space, found: Sequence[Mapping[int, float]], num_samples: int) -> None:
    kinds = [kind_of(decision) for decision in space.decisions]
    for kind in sorted(set(kinds) - {own for own, of in zip(kinds, found, strict=True) if of}):
        raise InputError(
            "a predictor of more than FFN widths needs samples of single cuts",
            values=f"none of {num_samples} samples cuts one {' and '.join(kind)} alone",
            remedy="Search with `--method mcts`, which begins with them",
        )


def _filled(space: Space, found: Sequence[Mapping[int, float]]) -> list[list[float]]:
    """[N][K-1] log KL of the options below the last: as `found`, or filled in from that."""
    decisions = []
    for decision, own in zip(space.decisions, found, strict=True):
        options = Options(np.union1d(decision.options[0].units, list(own)).astype(np.int64))
        decisions.append(Decision(decision.sites, (options, *decision.options[1:])))
    wider = Space(tuple(decisions), space.dense)
    table = np.full((wider.num_decisions, int(wider.counts.max())), np.nan)
    table[np.arange(wider.num_decisions), wider.top] = 0.0
    for row, units, own in zip(table, wider.units, found, strict=True):
        for k, kept in enumerate(units.tolist()):
            if kept in own:
                row[k] = math.exp(own[kept])
    log_kl = np.log(np.maximum(filled_table(wider, table), 1e-12))
    return [
        row[np.searchsorted(units, wanted[:-1])].tolist()
        for row, units, wanted in zip(log_kl, wider.units, space.units, strict=True)
    ]


def _padded(rows: Sequence[Sequence[float]]) -> FloatArray:
    """[N, K] of ragged rows: shorter ones repeat their last entry."""
    longest = max(len(row) for row in rows)
    return np.array([[*row, *[row[-1]] * (longest - len(row))] for row in rows])
