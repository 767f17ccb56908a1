"""The additive dynamic program over a stored one-layer sensitivity scan."""

from pruning.allocators.additive_dp import additive_dp, fill_up
from pruning.errors import InputError
from pruning.plan import Provenance
from pruning.repair import repair_widths
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
    """The optimum of the summed one-layer sensitivities on the scan's grid, repaired to the request's `round_to`.

    Nothing is predicted: the sum of one-layer divergences is far off where layers interact, at high sparsity.
    """
    grid, table, budget = scan.grid, scan.table, question.budget
    optimum, _ = additive_dp(grid, table, budget)
    levels = fill_up(grid, optimum, budget, table)
    # What one more channel is worth: the slope of the table to the next level up.
    worth = [
        float(row[k - 1] - row[k]) / (widths[k] - widths[k - 1]) if k < grid.num_levels else 0.0
        for k, row, widths in zip(levels, table, grid.widths, strict=True)
    ]
    round_to = question.request.round_to
    widths = repair_widths(question.model.anatomy, grid.widths_of(levels), budget, round_to=round_to, marginal=worth)
    return Answer(widths, provenance=Provenance(samples=scan.num_samples, calibration=scan.calibration_id))
