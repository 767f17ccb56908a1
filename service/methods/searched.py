"""Methods that cannot answer by themselves: a finished search has, near enough to the target."""

from fractions import Fraction

from pruning.errors import InputError
from pruning.plan import Predicted, Provenance
from pruning.repair import repair_widths
from pruning.target import Scope
from service.finished_searches import FoundConfiguration, SearchFinder
from service.methods.family import Answer, Candidate, Question, Unavailable
from service.methods.names import Method
from storage.contract import Repository

REACH = Fraction(1, 16)
"""A configuration answers requests for up to this much more of the model's FFN parameters than it keeps."""


class SearchedMethods:
    """The MethodFamily of `mcts`, `evolution` and `random`."""

    def __init__(self, repository: Repository) -> None:
        self._searches = SearchFinder(repository)

    def find(self, method: Method, question: Question) -> Candidate | Unavailable:
        """The best configuration that a finished search found near the target; see `best_configuration`."""
        found = self._searches.find(question.model, method)
        best = best_configuration(found, question.budget, question.model.anatomy.ffn_parameters)
        if best is not None:
            return Candidate(f"{best.search_id}: {best.label}", lambda: _answer(best, question))
        labels = dict.fromkeys(configuration.label for configuration in found)
        request = question.request
        scope = "" if request.scope is Scope.FFN else f" --scope {request.scope}"
        error = InputError(
            f"method '{method}' needs a finished search whose widths fit the target and leave at most {REACH} of the "
            "FFN parameters to add",
            values=f"model {question.model.id!r} was searched by it for {', '.join(labels) or 'nothing'}",
            remedy=f"Run `lop search --model {question.model.id} --data FILE --method {method} -s {request.sparsity}"
            f"{scope}`, or leave `method` out",
        )
        return Unavailable("no search is finished near this target", error)


def best_configuration(found: list[FoundConfiguration], budget: int, ffn_parameters: int) -> FoundConfiguration | None:
    """The configuration to answer `budget` with, or None.

    Of those that keep at most `budget` FFN parameters and lack at most `REACH` x `ffn_parameters` of it, the one of
    least KL; of equal ones the one that keeps more, then the later. A KL says nothing about another calibration set:
    only those measured on the most answers count, the others are noisier.
    """
    near = [x for x in found if 0 <= budget - x.parameters <= REACH * ffn_parameters]
    most = max((x.metrics.num_answers for x in near), default=0)
    compared = [
        (x.metrics.kl, -x.parameters, -index, x) for index, x in enumerate(near) if x.metrics.num_answers == most
    ]
    return min(compared, key=lambda entry: entry[:3])[3] if compared else None


def _answer(found: FoundConfiguration, question: Question) -> Answer:
    """The searched widths, filled up to the budget.

    Channels are only added, so the KL that was measured is one to expect; unless other widths are multiples of the
    request's `round_to`: then some layers lose channels, and nothing is predicted.
    """
    anatomy, request = question.model.anatomy, question.request
    widths = repair_widths(anatomy, found.widths, question.budget, round_to=request.round_to)
    notes = [f"{found.method}: search {found.search_id}, {found.label}, {found.evaluations} evaluations"]
    measured = all(now >= then for now, then in zip(widths, found.widths, strict=True))
    if not measured:
        notes.append(f"rounding to multiples of {request.round_to} took channels that were there when it was measured")
    elif tuple(widths) != found.widths:
        notes.append("channels were added to what was measured, up to the target")
    return Answer(
        widths,
        predicted=Predicted(quality=found.metrics.kl) if measured else None,
        provenance=Provenance(samples=found.evaluations, calibration=found.calibration_id, seed=found.seed),
        notes=tuple(notes),
    )
