"""Methods that cannot answer by themselves: a finished search has, near enough to the target."""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Literal

from pruning.allocators.methods import Method
from pruning.allocators.uniform import uniform_choice
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics, exact_match_tells
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.plan import Predicted
from pruning.planning.plan_parts import Provenance
from pruning.planning.prices import LatencyPrice, Price
from pruning.planning.target import counted, counted_budget, usual_scope
from service.finished_searches import FoundConfiguration, SearchFinder
from service.methods.family import Answer, Candidate, Question, Unavailable, in_space, of_other_spaces
from service.methods.filled import filled_up, start_of
from storage.contract import Findings
from values.sure_improvement import sure_to_be_better

REACH = Fraction(1, 16)
"""A configuration answers requests for up to this much more of the parameters that targets count than it keeps."""


class SearchedMethods:
    """The MethodFamily of `mcts`, `evolution` and `random`."""

    def __init__(self, repository: Findings) -> None:
        self._searches = SearchFinder(repository)

    def find(self, method: Method, question: Question) -> Candidate | Unavailable:
        """The best configuration that a finished search found near the target; see `best_configuration`.

        A request that names no method is answered within one level step of the search only: further off, methods that
        work from all levels know more of the target than a neighbour that is filled up.
        """
        space = question.request.space
        if space not in method.spaces:
            return of_other_spaces(method, space)
        after_recovery = question.request.after_recovery
        found = self._found(question, method)
        by_default = question.request.method is None and not after_recovery
        price, limits = counted(question.model.anatomy, space), question.limits
        best = best_configuration(
            found,
            lambda x: lacking_parameters(x, price, limits),
            price.total,
            within_one_step=by_default,
        )
        if best is not None:
            return Candidate(f"{best.search_id}: {best.label}", lambda: _answer(best, question))
        labels = dict.fromkeys(x.label if x.space is space else f"{x.label} in '{x.space}'" for x in found)
        of_space, option = in_space(space)
        if after_recovery:
            return _nothing_after_recovery(method, question, labels, price)
        what, parameters = (
            ("widths", "FFN parameters") if space is SpaceName.FFN else ("configurations", "decoder parameters")
        )
        if space.has_density:
            what, parameters = "densities", "weights"
        if space.has_bits:
            parameters = "decoder's bytes"
        error = InputError(
            f"method '{method}' needs a finished search{of_space} whose {what} fit the target and leave at most "
            f"{REACH} of the {parameters} to add",
            values=f"model {question.model.id!r} was searched by it for {', '.join(labels) or 'nothing'}",
            remedy=f"Run `lop search --model {question.model.id} --data FILE --method {method}{option} "
            f"{_option(question, price)}`, or leave `method` out",
        )
        return Unavailable(f"no search{of_space} is finished within one level step of this target", error)

    def _found(self, question: Question, method: Method) -> list[FoundConfiguration]:
        """What was searched for in the request's space. What changes bits alone counts in both spaces of bits."""
        space = question.request.space
        if not space.has_bits or question.request.after_recovery:
            after_recovery = question.request.after_recovery
            return self._searches.find(question.model, method, space, after_recovery=after_recovery)
        found = self._searches.find(question.model, method, SpaceName.BITS, SpaceName.ALL_BITS)
        return [x for x in found if space is SpaceName.ALL_BITS or x.changes_bits_alone]


def _nothing_after_recovery(method: Method, question: Question, labels: Iterable[str], price: Price) -> Unavailable:
    of_space, option = in_space(question.request.space)
    error = InputError(
        f"a plan for after recovery needs recovered finalists of a search by '{method}'{of_space} near the target",
        values=f"of model {question.model.id!r} there are some for {', '.join(labels) or 'nothing'}",
        remedy=f"Run `lop search --model {question.model.id} --data FILE --method {method}{option} "
        f"-s {_target(question, price)} --after-recovery RECIPE --budget MINUTES`, or leave `after_recovery` out",
    )
    return Unavailable(f"no search{of_space} for after recovery is finished near this target", error)


def _option(question: Question, price: Price) -> str:
    """What to search for: a latency on the device that is named, or a sparsity."""
    budget, latency = question.request.budget, question.demand.latency
    if budget is None or budget.latency_ms is None or latency is None or question.request.space not in SPACES_OF_UNITS:
        return f"-s {_target(question, price)}"
    dense_ms = LatencyPrice(question.model.anatomy, latency).total / 1e6
    share = min(math.floor(budget.latency_ms / dense_ms * 1000) / 1000, 0.999)
    return (
        f"--device {question.request.device} --latency-share {share:g} --batch {budget.batch} "
        f"--prompt-tokens {budget.prompt_tokens} --output-tokens {budget.output_tokens}"
    )


def _target(question: Question, price: Price) -> str:
    """The sparsity to search, and its scope where a command does not take it for granted."""
    request, limits = question.request, question.limits
    if request.sparsity is None:
        kept = counted_budget(question.model.anatomy, limits)
        if kept is None:
            kept = price.cost(limits.space.architecture(uniform_choice(limits)))
        return str(math.ceil((1 - kept / price.total) * 1000) / 1000)
    return f"{request.sparsity}" + (
        "" if request.counted is usual_scope(request.space) else f" --scope {request.counted}"
    )


def best_configuration(
    found: list[FoundConfiguration],
    lacking: Callable[[FoundConfiguration], float],
    parameters: int,
    *,
    within_one_step: bool = False,
) -> FoundConfiguration | None:
    """The configuration to answer with, or None.

    `lacking` says how many parameters would have to be added to use up what is asked for; it is negative for a
    configuration that exceeds it. Of those that fit and lack at most `REACH` x `parameters` (and at most one step
    of their search's levels, if `within_one_step`) more than they left of their own target, the one of least KL; of
    equal ones the one that keeps more, then one that was validated, then the later. But where some change bits alone,
    the best of these, unless another one is sure to be better by cross-validation. A KL says nothing about another
    calibration set: only those of one set count, the one of most answers, whose KLs are the least noisy; of equal ones
    the latest. Sets that are not known are told apart by their answers.
    """

    def reach(x: FoundConfiguration) -> Fraction:
        far = REACH * parameters
        return (min(far, Fraction(x.level_step)) if within_one_step else far) + x.left_over

    def least(among: list[tuple[int, FoundConfiguration]]) -> FoundConfiguration:
        return min(among, key=lambda e: (e[1].metrics.kl, -e[1].parameters, e[1].validation is None, -e[0]))[1]

    near = [(index, x) for index, x in enumerate(found) if 0 <= lacking(x) <= reach(x)]
    if not near:
        return None
    _, finest = max(near, key=lambda entry: (entry[1].metrics.num_answers, entry[0]))
    compared = [(index, x) for index, x in near if _calibration(x) == _calibration(finest)]
    best, simple = least(compared), [entry for entry in compared if entry[1].changes_bits_alone]
    if simple and not sure_to_be_better(best.held_out, least(simple).held_out):
        return least(simple)
    return best


def lacking_parameters(found: FoundConfiguration, price: Price, limits: Limits) -> float:
    """Parameters, as `price` counts them, that could be added to `found` until a limit is used up; negative if it
    exceeds one.

    As far as parameters of all decisions cost alike under each limit, and exactly for a limit on parameters.
    """
    space = limits.space
    removable = price.cost(space.architecture(space.top)) - price.cost(space.architecture(space.bottom))
    slacks: list[int] = limits.slack(start_of(found, space)).tolist()
    return min(slack * (removable / max(x.dense - x.least, 1)) for slack, x in zip(slacks, limits.limits, strict=True))


def _calibration(found: FoundConfiguration) -> tuple[str | None, int]:
    """What tells calibration sets apart."""
    return found.calibration_id, found.metrics.num_answers


def _answer(found: FoundConfiguration, question: Question) -> Answer:
    """What was found, filled up to the budget.

    Units are only added, so what was measured is to be expected, on validation data if there is some; unless other
    options are allowed by the request's `round_to` and `tp_size`: then some layers lose units, and it says nothing of
    them.
    """
    request, space = question.request, question.limits.space
    filled = filled_up(found, question.limits)
    notes = [f"{found.method}: search {found.search_id}, {found.label}, {found.evaluations} evaluations"]
    same_target = _is_of_target(found, question)
    units = "channels" if request.space is SpaceName.FFN else "channels or KV groups"
    if space.has_density:
        units = "weights"
    if space.has_bits:
        units = "units or bits"
    for_another = filled.changed and not same_target
    if for_another:
        notes.append("searched for another target and filled up to this one")
    if not filled.keeps_all:
        alone = request.tp_size == 1 or request.space is SpaceName.FFN
        shared = "" if alone else f" and to what {request.tp_size} devices share"
        notes.append(
            f"rounding to multiples of {request.round_to}{shared} took {units} that were there when it was measured"
        )
    elif filled.changed and same_target:
        notes.append(f"{units} were added to what was measured, up to the target")
    if filled.keeps_all:
        notes.append(_meaning_of_quality(found))
    return Answer(
        filled.architecture,
        predicted=_predicted(found) if filled.keeps_all else None,
        provenance=Provenance(
            samples=found.evaluations, calibration=found.calibration_id, seed=found.seed, filled_up=for_another
        ),
        notes=tuple(notes),
        recovery=found.recovery,
    )


def _is_of_target(found: FoundConfiguration, question: Question) -> bool:
    """Whether it was searched for just what is asked."""
    request, limits = question.request, question.limits
    if found.latency is None:
        return found.budget == counted_budget(question.model.anatomy, limits)
    budget = request.budget
    return (
        budget is not None
        and (found.latency.device, found.latency.workload) == (request.device, budget.workload)
        and any((x.kind, x.most) == (LimitKind.LATENCY_MS, found.latency.most_ns) for x in limits.limits)
    )


def _predicted(found: FoundConfiguration) -> Predicted:
    """What was measured on validation data; else what cross-validation says; else what was searched by.

    Without an exact match that the dense model does not have either.
    """
    if found.validation is not None:
        return _as_measured(found.validation.metrics, found.validation.dense, of="unseen")
    if found.unseen is None:
        return _as_measured(found.metrics, found.dense, of="calibration")
    expected = found.unseen.expected()
    tells = exact_match_tells(found.dense)
    return Predicted(
        quality=expected.kl,
        interval=expected.interval,
        of="unseen",
        accuracy=expected.accuracy if tells else None,
        accuracy_interval=expected.accuracy_interval if tells else None,
        agreement=expected.agreement,
        agreement_interval=expected.agreement_interval,
    )


def _as_measured(metrics: Metrics, dense: Metrics | None, *, of: Literal["unseen", "calibration"]) -> Predicted:
    accuracy = metrics.accuracy if exact_match_tells(dense) else None
    return Predicted(quality=metrics.kl, of=of, accuracy=accuracy, agreement=metrics.agreement)


def _meaning_of_quality(found: FoundConfiguration) -> str:
    if found.recovery:
        where = "the conversations that decided between the finalists"
        if found.validation is not None:
            where = f"validation data, {found.validation.data} (set {found.validation.calibration_id[:12]})"
        return (
            "the predicted quality is of the model after the training that the plan counts on (`recovery`), measured "
            f"on {where}; {found.evaluations} finalists were recovered"
        )
    if found.validation is not None:
        return (
            f"the predicted KL was measured on validation data, {found.validation.data} "
            f"(set {found.validation.calibration_id[:12]}), which the search never saw"
        )
    if found.unseen is not None:
        return "the predicted KL is of unseen conversations, by cross-validation of the search"
    return f"the predicted KL is the calibration KL of the best of {found.evaluations}, and so optimistic"
