"""From a request to a plan: by the method asked for, or by the best one that the stored data allows, and the same plan
for the same request. How widths are chosen is in `service.methods`.
"""

import logging

from pruning.cost import added_bias_parameters, price
from pruning.devices import get_device
from pruning.errors import CheckpointError, InfeasibleTargetError, LopError
from pruning.plan import PlanRanking, PlanTarget, PruningPlan, content_id
from pruning.planning import make_plan
from pruning.target import achieved_sparsity, ffn_parameter_budget, scope_parameters
from service.methods.additive import AdditiveMethod
from service.methods.family import Answer, MethodFamily, Question, Unavailable
from service.methods.names import BEST_FIRST, Method
from service.methods.predicted import PredictorMethod
from service.methods.searched import SearchedMethods
from service.methods.statistical import StatisticalMethods
from service.methods.uniform import UniformMethod
from service.predictor_cache import PredictorCache
from service.rankings import model_ranking_url, ranking_url
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.records import BINARY, ModelRecord, PlanRecord

_logger = logging.getLogger("service.planner")


class Planner:
    """Answers plan requests from what is stored. Thread-safe; blocks, so call it off the event loop."""

    def __init__(self, repository: Repository, predictors: PredictorCache) -> None:
        self._repository = repository
        self._predictor_method = PredictorMethod(repository, predictors)
        statistical, searched = StatisticalMethods(repository), SearchedMethods(repository)
        self._families: dict[Method, MethodFamily] = {
            Method.LOP: self._predictor_method,
            Method.ADDITIVE_DP: AdditiveMethod(repository),
            Method.UNIFORM: UniformMethod(),
            Method.WANDA_SP: statistical,
            Method.FLAP: statistical,
            Method.LLM_PRUNER: statistical,
            Method.OWL: statistical,
            Method.ECOFLAP: statistical,
            Method.SHORTGPT: statistical,
            Method.MCTS: searched,
            Method.EVOLUTION: searched,
            Method.RANDOM: searched,
        }

    def plan(self, request: PlanRequest) -> PruningPlan:
        """The plan for `request`. Equal requests get the very same plan.

        Raises:
            NotFoundError: the model or the device is unknown.
            InfeasibleTargetError: no widths remove that much; `nearest` is the most sparsity that works.
            InputError: the method that was asked for lacks its data.
            CheckpointError: `lop` was asked for and this version cannot read the predictor.
            StorageError: the statistics that the method works from are damaged.
        """
        model = self._repository.get_model(request.model)
        # -0.0 + 0.0 is 0.0: both zeros are the same request.
        target = PlanTarget(sparsity=request.sparsity + 0.0, scope=request.scope, device=request.device)
        if target.device is not None:
            get_device(target.device)
        budget = ffn_parameter_budget(model.anatomy, request.sparsity, request.scope, round_to=request.round_to)
        notes = [f"FFN widths are multiples of {request.round_to}"]
        question = Question(model, request, budget)
        for method in BEST_FIRST if request.method is None else (request.method,):
            candidate = self._families[method].find(method, question)
            if isinstance(candidate, Unavailable):
                if request.method is not None:
                    raise candidate.error
                notes.append(f"{method}: {candidate.note}")
                continue
            key = _request_key(question, target, method, candidate.source, notes)
            if (stored := self._repository.find_plan(key)) is not None:
                return stored.plan
            try:
                answer = candidate.answer()
            except InfeasibleTargetError as error:
                if request.method is not None:
                    raise _in_sparsity(error, model, request) from error
                notes.append(f"{method}: this target is outside the widths it was made with")
                continue
            except CheckpointError as error:
                if request.method is not None:
                    raise
                _logger.warning("predictor %s cannot be used: %s", candidate.source, error)
                notes.append(f"{method}: this version cannot read predictor {candidate.source}")
                continue
            ranking = self._ranking_of(answer, model)
            plan = _make_plan(question, target, method, answer, ranking, notes)
            return self._repository.add_plan(PlanRecord(key, plan)).plan
        raise LopError("the uniform method answers every feasible target", values=f"{model.id}, {target!r}")

    def _ranking_of(self, answer: Answer, model: ModelRecord) -> PlanRanking:
        """What the plan names: the method's own ranking, which is stored now, or the model's."""
        if answer.ranking is None:
            return PlanRanking(sha256=model.ranking_sha256, url=model_ranking_url(model.id))
        sha256 = self._repository.put_artifact(answer.ranking.to_bytes(), BINARY)
        return PlanRanking(sha256=sha256, url=ranking_url(sha256), compensates=answer.ranking.compensates)

    def preload(self) -> None:
        """Make the predictors ready that are likely to be asked for: time that no request should pay."""
        self._predictor_method.preload()


def _make_plan(
    question: Question,
    target: PlanTarget,
    method: Method,
    answer: Answer,
    ranking: PlanRanking,
    notes: list[str],
) -> PruningPlan:
    """The plan document, after a check that it keeps to the target whatever the method did."""
    anatomy, widths = question.model.anatomy, list(answer.widths)
    added = sum(added_bias_parameters(anatomy, widths)) if ranking.compensates else 0
    kept = added + sum(w * x.ffn_parameters_per_channel for w, x in zip(widths, anatomy.layers, strict=True))
    # 1e-9 is the slack of `ffn_parameter_budget`.
    achieved = achieved_sparsity(anatomy, widths, added_parameters=added)[target.scope]
    exceeds = kept > question.budget or achieved < (target.sparsity or 0.0) - 1e-9
    if exceeds or any(not 0 < w <= x.ffn_width for w, x in zip(widths, anatomy.layers, strict=True)):
        raise LopError(
            "a plan never exceeds its target", values=f"{method}: {widths}, {kept} of {question.budget} parameters"
        )
    notes = [*notes, *answer.notes]
    if target.device is not None:
        device = get_device(target.device)
        needed = price(anatomy, widths, compensates=ranking.compensates).memory_bytes
        if needed > device.memory_bytes:
            notes.append(f"weights and KV cache need {needed} bytes, {device.id} has {device.memory_bytes}")
    return make_plan(
        anatomy,
        widths,
        model_id=question.model.id,
        target=target,
        ranking=ranking,
        method=method.value,
        predicted=answer.predicted,
        provenance=answer.provenance.model_copy(update={"note": "; ".join(notes)}),
    )


def _request_key(question: Question, target: PlanTarget, method: Method, source: str | None, notes: list[str]) -> str:
    """What makes two requests the same: everything that the plan depends on, and nothing else."""
    return content_id(
        {
            "model": question.model.id,
            "ranking": question.model.ranking_sha256,
            "target": target.model_dump(mode="json"),
            "round_to": question.request.round_to,
            "method": method,
            "source": source,
            "notes": notes,
        }
    )


def _in_sparsity(error: InfeasibleTargetError, model: ModelRecord, request: PlanRequest) -> InfeasibleTargetError:
    """`error` of a method, whose `nearest` counts parameters to keep, in terms of the request."""
    nearest = None
    if error.nearest is not None:
        removable = model.anatomy.ffn_parameters - error.nearest
        # Rounded down, so that asking for it works.
        nearest = int(removable / scope_parameters(model.anatomy, request.scope) * 1e6) / 1e6
    return InfeasibleTargetError(
        f"method '{request.method}' cannot remove this much: {error.rule}",
        values=repr(request.sparsity),
        remedy="Leave `method` out, or ask for less"
        if nearest is None
        else f"Leave `method` out, or ask for {nearest}",
        nearest=nearest,
    )
