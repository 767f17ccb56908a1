"""The additive dynamic program over a stored one-decision sensitivity scan."""

import numpy as np

from pruning.allocators.additive import additive_architecture
from pruning.allocators.methods import Method
from pruning.errors import InputError
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan_parts import Provenance
from service.methods.family import Answer, Candidate, Question, Unavailable, in_space
from service.sensitivity_scan import ScanFinder, SensitivityScan
from storage.contract import Findings

ESTIMATED = "the scan measured {measured} of {options} options alone, the others are estimated"
"""In the note of a plan from the scan of a large space."""

SUMMED = "what a layer loses without both of its halves counts as the sum of what it loses without each"
"""In the note of a plan that skips whole layers by such a sum."""

NOT_COMPARED = "by the sum of what units and bits lose; only a search near the target is compared with bits alone"
"""In the note of a plan of both."""


class AdditiveMethod:
    """The MethodFamily of `additive-dp`."""

    def __init__(self, repository: Findings) -> None:
        self._scans = ScanFinder(repository)

    def find(self, method: Method, question: Question) -> Candidate | Unavailable:
        """The scan with the most options."""
        space = question.request.space
        scan = self._scans.find(question.model, space)
        if scan is not None:
            return Candidate(scan.id, lambda: _answer(scan, question))
        of_space, option = in_space(space)
        layers = "one-layer" if space is SpaceName.FFN else "one-decision"
        error = InputError(
            f"method '{method}' needs a complete {layers} sensitivity scan{of_space}",
            values=f"model {question.model.id!r} has none",
            remedy=f"Run `lop search{option}`, which begins with one, or leave `method` out",
        )
        return Unavailable(f"no complete {layers} sensitivity scan is stored{of_space}", error)


def _answer(scan: SensitivityScan, question: Question) -> Answer:
    """The least summed sensitivities under all limits of the request, in its `round_to` and `tp_size`.

    Never below the scan's lowest levels. Nothing is predicted: the sum of one-decision divergences is far off where
    decisions interact, at high sparsity.
    """
    space = question.limits.space
    least = np.zeros(space.num_decisions, dtype=np.int64)
    places = space.places_of(scan.space)
    assert places is not None  # `find_scan` finds no other
    least[places] = scan.space.units_of(scan.space.bottom)
    limits = question.demand.limits_for(at_least=least.tolist())
    architecture = additive_architecture(scan.space, scan.table, limits)
    options = int(scan.space.counts.sum()) - scan.space.num_decisions
    notes = [] if scan.num_samples == options else [ESTIMATED.format(measured=scan.num_samples, options=options)]
    skipped = [site.layer for site, option in architecture.items if not option.units]
    if question.request.space is SpaceName.ALL and len(set(skipped)) < len(skipped):
        notes.append(SUMMED)
    if question.request.space is SpaceName.ALL_BITS:
        notes.append(NOT_COMPARED)
    return Answer(
        architecture,
        provenance=Provenance(samples=scan.num_samples, calibration=scan.calibration_id),
        notes=tuple(notes),
    )
