"""The additive dynamic program over a stored one-layer sensitivity scan."""

from pruning.allocators.additive import additive_architecture
from pruning.allocators.methods import Method
from pruning.errors import InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan_parts import Provenance
from service.methods.family import Answer, Candidate, Question, Unavailable, of_ffn_widths_only
from service.sensitivity_scan import ScanFinder, SensitivityScan
from storage.contract import Findings


class AdditiveMethod:
    """The MethodFamily of `additive-dp`."""

    def __init__(self, repository: Findings) -> None:
        self._scans = ScanFinder(repository)

    def find(self, method: Method, question: Question) -> Candidate | Unavailable:
        """The scan with the most levels."""
        if question.request.space is not SpaceName.FFN:
            return of_ffn_widths_only(method, question.request.space)
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
    """The least summed one-layer sensitivities under all limits of the request, in widths of its `round_to`.

    Never below the scan's lowest levels. Nothing is predicted: the sum of one-layer divergences is far off where layers
    interact, at high sparsity.
    """
    limits = question.demand.limits_for(at_least=scan.space.units_of(scan.space.bottom))
    architecture = additive_architecture(scan.space, scan.table, limits)
    return Answer(architecture, provenance=Provenance(samples=scan.num_samples, calibration=scan.calibration_id))
