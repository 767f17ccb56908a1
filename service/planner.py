"""From a request to a plan: by the method asked for, or by the best one that the stored data allows, and the same plan
for the same request. How widths are chosen is in `service.methods`.
"""

import logging
import math
from typing import Any

from pruning.allocators.methods import BEST_FIRST, Family, Method
from pruning.anatomy.packed_weights import GROUP
from pruning.devices.device import Device
from pruning.devices.latency import latency_model
from pruning.errors import CheckpointError, InfeasibleTargetError, InputError, LopError
from pruning.planning.axis_spaces import SpaceName, fine_space
from pruning.planning.cost import achieved_costs
from pruning.planning.demand import Demand
from pruning.planning.make_plan import exceeded_limits, make_plan
from pruning.planning.nonzero_weights import zeroed_share
from pruning.planning.plan import Axis, PlanRanking, PlanTarget, PruningPlan
from pruning.planning.plan_parts import content_id
from pruning.planning.ranking import Ranking
from pruning.planning.space import Space
from pruning.planning.workload import Budget, Workload
from service.devices import DeviceFinder, KnownDevice
from service.lru_cache import LruCache
from service.methods.additive import AdditiveMethod
from service.methods.family import Answer, MethodFamily, Question, Unavailable
from service.methods.predicted import PredictorMethod
from service.methods.searched import SearchedMethods
from service.methods.statistical import StatisticalMethods
from service.methods.uniform import UniformMethod
from service.out_of_reach import in_all_spaces, of_method
from service.predictor_cache import PredictorCache
from service.ranking_urls import model_ranking_url, ranking_url
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.records import BINARY, ModelRecord, PlanRecord, PredictorRecord

_logger = logging.getLogger("service.planner")

# An anatomy of 32 layers takes some hundred kilobytes.
_MAX_CACHED_MODELS = 32

_AXES: dict[SpaceName, tuple[Axis, ...]] = {
    SpaceName.FFN: (Axis.FFN,),
    SpaceName.ATTENTION: (Axis.ATTENTION, Axis.SKIP),
    SpaceName.LAYERS: (Axis.SKIP,),
    SpaceName.ALL: (Axis.FFN, Axis.ATTENTION, Axis.SKIP),
    SpaceName.BITS: (Axis.BITS,),
    SpaceName.ALL_BITS: (Axis.FFN, Axis.ATTENTION, Axis.SKIP, Axis.BITS),
    SpaceName.DENSITY: (Axis.DENSITY,),
}
"""As plans say it."""


HOW_DENSITIES_ARE_WRITTEN = (
    "zeroed, not removed: nothing becomes smaller or faster. `lop sparsify --plan PLAN --method wanda --inputs dense` "
    "writes the weights that searches score"
)
"""In the note of a plan of densities."""


class Planner:
    """Answers plan requests from what is stored. Thread-safe; blocks, so call it off the event loop."""

    def __init__(self, repository: Repository, predictors: PredictorCache) -> None:
        self._repository = repository
        self._models: LruCache[str, ModelRecord] = LruCache(_MAX_CACHED_MODELS)
        self._orders_groups: LruCache[str, bool] = LruCache(_MAX_CACHED_MODELS)
        self._devices = DeviceFinder(repository)
        self._predictor_method = PredictorMethod(repository, predictors)
        self._families: dict[Family, MethodFamily] = {
            Family.PREDICTOR: self._predictor_method,
            Family.SCAN: AdditiveMethod(repository),
            Family.NOTHING: UniformMethod(),
            Family.STATISTICS: StatisticalMethods(repository),
            Family.SEARCH: SearchedMethods(repository),
        }

    def plan(self, request: PlanRequest) -> PruningPlan:
        """The plan for `request`. Equal requests get the very same plan.

        Raises:
            NotFoundError: the model or the device is unknown.
            InfeasibleTargetError: no widths remove that much, or meet the whole budget; with the nearest that works.
            InputError: the method that was asked for lacks its data, or the request's widths or workload make no sense.
            CheckpointError: `lop` was asked for and this version cannot read the predictor.
            StorageError: the statistics that the method works from are damaged.
        """
        question, target, known = self._question(request)
        device = None if known is None else known.device
        step = math.lcm(request.round_to, request.tp_size, GROUP if request.space.has_bits else 1)
        notes = [f"FFN widths are multiples of {step}"] if Axis.FFN in _AXES[request.space] else []
        refused: InputError | None = None
        for method in _methods(request):
            candidate = self._families[method.family].find(method, question)
            if isinstance(candidate, Unavailable):
                if request.method is not None:
                    raise candidate.error
                refused = refused or candidate.error
                notes.append(f"{method}: {candidate.note}")
                continue
            knows_better = method is Method.LOP or request.after_recovery
            judge = None if knows_better else self._predictor_method.newest(question)
            key = _request_key(question, target, known, method, candidate.source, notes, judge)
            if (stored := self._repository.find_plan(key)) is not None:
                return stored.plan
            try:
                answer = candidate.answer()
            except InfeasibleTargetError as error:
                if request.method is not None or request.after_recovery:
                    raise of_method(error, method) from error
                made_with = "widths" if request.space is SpaceName.FFN else "options"
                notes.append(f"{method}: this target is outside the {made_with} it was made with")
                continue
            except CheckpointError as error:
                if request.method is not None:
                    raise
                _logger.warning("predictor %s cannot be used: %s", candidate.source, error)
                notes.append(f"{method}: this version cannot read predictor {candidate.source}")
                continue
            ranking = self._ranking_of(answer, question.model)
            if judge is not None:
                answer = self._predictor_method.judge(judge, answer, ranking.sha256)
            plan = _make_plan(question, target, device, method, answer, ranking, notes)
            if self._repository.registered_at(request.model) != question.model.created_at:
                # It was removed, and perhaps registered anew under the same id, since it was read.
                self._models.forget(request.model)
                return self.plan(request)
            return self._repository.add_plan(PlanRecord(key, plan)).plan
        if request.after_recovery and refused is not None:
            raise refused
        raise LopError("the uniform method answers every feasible target", values=f"{request.model}, {target!r}")

    def model(self, model_id: str) -> ModelRecord:
        """A registered model; raises NotFoundError. It never changes, and reading it means parsing every shape; but one
        that was removed may come back as another, which `plan` looks for before it stores anything."""
        return self._models.get(model_id, lambda: self._repository.get_model(model_id))

    def _question(self, request: PlanRequest) -> tuple[Question, PlanTarget, KnownDevice | None]:
        """What is asked for, after checks that it can be met and that everything it names is there."""
        model = self.model(request.model)
        known = None if request.device is None else self._devices.find(request.device)
        device = None if known is None else known.device
        space = fine_space(model.anatomy, request.space, round_to=request.round_to, tp_size=request.tp_size)
        if request.space in (SpaceName.ATTENTION, SpaceName.ALL, SpaceName.ALL_BITS):
            self._check_group_order(model, space)
        target = _target(request, device)
        workload = Workload() if target.budget is None else target.budget.workload
        demand = Demand(
            anatomy=model.anatomy,
            space=space,
            sparsity=target.sparsity,
            scope=target.scope,
            budget=target.budget,
            latency=None if device is None else latency_model(device, model.anatomy, workload),
        )
        try:
            question = Question(model, request, demand, demand.limits_for())
        except InfeasibleTargetError as error:
            raise in_all_spaces(error, demand, request, device) from error
        return question, target, known

    def _check_group_order(self, model: ModelRecord, space: Space) -> None:
        """Raises InputError as `Ranking.check_space`; a ranking is long, so it is read once where it orders groups."""

        def read() -> Ranking:
            return Ranking.from_bytes(self._repository.get_artifact(model.ranking_sha256).content)

        if not self._orders_groups.get(model.ranking_sha256, lambda: read().kv_groups is not None):
            read().check_space(space)

    def _ranking_of(self, answer: Answer, model: ModelRecord) -> PlanRanking:
        """What the plan names: the method's own ranking, which is stored now, or the model's."""
        if answer.ranking is None:
            return PlanRanking(sha256=model.ranking_sha256, url=model_ranking_url(model.id))
        sha256 = self._repository.put_artifact(answer.ranking.to_bytes(), BINARY)
        return PlanRanking(sha256=sha256, url=ranking_url(sha256))

    def preload(self) -> None:
        """Make the predictors ready that are likely to be asked for: time that no request should pay."""
        self._predictor_method.preload()


def _methods(request: PlanRequest) -> tuple[Method, ...]:
    """Those to try, in order."""
    if request.method is not None:
        return (request.method,)
    if request.after_recovery:
        return tuple(method for method in Method if method.family is Family.SEARCH)
    return BEST_FIRST


def _target(request: PlanRequest, device: Device | None) -> PlanTarget:
    """What `request` asks for, in the one form that all equal requests share."""
    budget = request.budget
    if request.sparsity is None and device is not None:
        budget = budget or Budget()
        memory = min(budget.memory_bytes or device.memory_bytes, device.memory_bytes)
        budget = budget.model_copy(update={"memory_bytes": memory})
    return PlanTarget(
        # -0.0 + 0.0 is 0.0: both zeros are the same request.
        sparsity=None if request.sparsity is None else request.sparsity + 0.0,
        scope=request.counted,
        budget=budget,
        device=request.device,
        round_to=request.round_to,
        tp_size=request.tp_size,
        space=_AXES[request.space],
    )


def _make_plan(
    question: Question,
    target: PlanTarget,
    device: Device | None,
    method: Method,
    answer: Answer,
    ranking: PlanRanking,
    notes: list[str],
) -> PruningPlan:
    """The plan document, after a check of its exact costs: it keeps to the target whatever the method did."""
    demand, architecture = question.demand, answer.architecture
    if answer.recovery:
        target = target.model_copy(update={"recovery": answer.recovery})
    workload, gguf = (Workload(), None) if target.budget is None else (target.budget.workload, target.budget.gguf)
    compensates = answer.ranking is not None and answer.ranking.compensates
    achieved = achieved_costs(
        demand.anatomy, architecture, workload, compensates=compensates, latency=demand.latency, gguf=gguf
    )
    exceeded = exceeded_limits(target, achieved)
    choice = demand.space.choice_of(architecture)
    if choice is not None and demand.space.has_density and (question.limits.slack(choice) < 0).any():
        exceeded = [*exceeded, f"sparsity {zeroed_share(demand.anatomy, architecture)} of {target.sparsity}"]
    if exceeded or choice is None:
        raise LopError(
            "a plan never exceeds its target", values=f"{method}: {architecture.document()}: {'; '.join(exceeded)}"
        )
    notes = [*notes, *answer.notes, *([HOW_DENSITIES_ARE_WRITTEN] if demand.space.has_density else [])]
    if demand.latency is not None:
        timed = "with whole attention" if not demand.space.has_bits else "with weights as they are"
        unknown = "" if achieved.latency_ms is not None else f", {timed} only: none is known of this plan"
        notes.append(f"latency: {demand.latency.description}{unknown}")
    needed = achieved.memory_bytes
    if device is not None and needed > device.memory_bytes:
        notes.append(f"weights, KV cache and activations need {needed} bytes, {device.id} has {device.memory_bytes}")
    return make_plan(
        demand.anatomy,
        architecture,
        model_id=question.model.id,
        target=target,
        ranking=ranking,
        method=method.value,
        compensates=compensates,
        # Where weights are zeroed nothing is cut that others could take over for.
        reconstructed_on=question.model.reconstructed_on
        if answer.ranking is None and not demand.space.has_density
        else None,
        trained_by=answer.recovery,
        predicted=answer.predicted,
        provenance=answer.provenance.model_copy(update={"note": "; ".join(notes)}),
        achieved=achieved,
        weights_sha256=question.model.weights_sha256,
    )


def _request_key(
    question: Question,
    target: PlanTarget,
    known: KnownDevice | None,
    method: Method,
    source: str | None,
    notes: list[str],
    judge: PredictorRecord | None,
) -> str:
    """What makes two requests the same: everything that the plan depends on, and nothing else."""
    return content_id(
        ({} if judge is None else {"judge": judge.id})
        | ({"after_recovery": True} if question.request.after_recovery else {})
        | {
            "model": question.model.id,
            "ranking": question.model.ranking_sha256,
            "target": _key_of_target(target),
            "device": None if known is None else _content_of(known),
            "method": method,
            "source": source,
            "notes": notes,
        }
    )


def _key_of_target(target: PlanTarget) -> dict[str, Any]:
    """`target` as JSON, as plans of schema 1 said it: requests from then are still the same requests."""
    document = target.model_dump(mode="json")
    space, recovery = document.pop("space"), document.pop("recovery")
    newer = {"space": None if space == list(_AXES[SpaceName.FFN]) else space, "recovery": recovery}
    return document | {name: value for name, value in newer.items() if value is not None}


def _content_of(known: KnownDevice) -> dict[str, Any]:
    """Everything that plans take from a device, as JSON: an id may be registered again with other figures."""
    device = known.device
    return {
        "memory_bytes": device.memory_bytes,
        "peak_flops_per_s": dict(device.peak_flops_per_s),
        "bandwidth_bytes_per_s": device.bandwidth_bytes_per_s,
        "source": device.source,
        "profile": known.profile_sha256,
    }
