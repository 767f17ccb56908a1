"""The additive dynamic program over a stored one-layer sensitivity scan."""

from pruning.allocators.additive_dp import additive_dp, fill_up
from pruning.errors import InputError
from pruning.levels import LevelGrid
from pruning.limits import Limit, WidthSteps
from pruning.plan import Provenance
from service.methods.family import Answer, Candidate, Question, Unavailable
from service.methods.names import Method
from service.sensitivity_scan import ScanFinder, SensitivityScan
from storage.contract import Repository


class AdditiveMethod:
    """The MethodFamily of `additive-dp`."""

    def __init__(self, repository: Repository) -> None:
        self._scans = ScanFinder(repository)

    def find(self, method: Method, question: Question) -> Candidate | Unavailable:
        """The scan with the most levels."""
        scan = self._scans.find(question.model)
        if scan is not None:
            return Candidate(scan.id, lambda: _answer(scan, question))
        error = InputError(
            f"method '{method}' needs a complete one-layer sensitivity scan",
            values=f"model {question.model.id!r} has none",
            remedy="Run `lop search`, which begins with one, or leave `method` out",
        )
        return Unavailable("no complete one-layer sensitivity scan is stored", error)


def _answer(scan: SensitivityScan, question: Question) -> Answer:
    """The optimum of the summed one-layer sensitivities on the scan's levels, under the limit that takes most, repaired
    to all limits and the request's `round_to`.

    Never below the scan's lowest levels. Nothing is predicted: the sum of one-layer divergences is far off where layers
    interact, at high sparsity.
    """
    table = scan.table
    limits = question.demand.limits_for(at_least=[row[0] for row in scan.grid.widths])
    binding = limits.binding
    grid = _priced(scan.grid, limits.steps, binding)
    budget = min(binding.most, binding.dense) - binding.fixed
    optimum, _ = additive_dp(grid, table, budget)
    levels = fill_up(grid, optimum, budget, table)
    # What one more channel is worth: the slope of the table to the next level up.
    worth = [
        float(row[k - 1] - row[k]) / (widths[k] - widths[k - 1]) if k < grid.num_levels else 0.0
        for k, row, widths in zip(levels, table, grid.widths, strict=True)
    ]
    widths = limits.repair(grid.widths_of(levels), worth)
    return Answer(widths, provenance=Provenance(samples=scan.num_samples, calibration=scan.calibration_id))


def _priced(grid: LevelGrid, steps: WidthSteps, limit: Limit) -> LevelGrid:
    """`grid` with what its levels cost under `limit`, each as the widest allowed width that is not above it."""
    columns = [steps.at_most(list(level)) for level in zip(*grid.widths, strict=True)]
    costs = tuple(tuple(int(row[column[layer]]) for column in columns) for layer, row in enumerate(limit.costs))
    return LevelGrid(grid.widths, costs, grid.round_to)
