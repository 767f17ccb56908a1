"""From a request to a plan: the best method that the stored data allows, and the same plan for the same request."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from pruning.allocators.additive_dp import additive_dp, fill_up
from pruning.allocators.uniform import uniform_widths
from pruning.cost import price
from pruning.devices import get_device
from pruning.errors import CheckpointError, InfeasibleTargetError, InputError, LopError
from pruning.levels import DEFAULT_ROUND_TO
from pruning.plan import PlanRanking, PlanTarget, Predicted, Provenance, PruningPlan, content_id
from pruning.planning import make_plan
from pruning.repair import repair_widths
from pruning.target import achieved_sparsity, ffn_parameter_budget, scope_parameters
from service.predictor_cache import PredictorCache
from service.schemas import Method, PlanRequest
from service.sensitivity_scan import ScanFinder, SensitivityScan
from storage.contract import Repository
from storage.records import ModelRecord, PlanRecord, PredictorRecord

_logger = logging.getLogger("service.planner")


def ranking_url(model_id: str) -> str:
    """Where the server offers a model's ranking file, relative to its own address."""
    return f"/v1/models/{quote(model_id, safe='/')}/ranking"


@dataclass(frozen=True, slots=True)
class Allocation:
    """Widths [L] that a method chose, and what it knows about them."""

    widths: Sequence[int]
    predicted: Predicted | None = None
    provenance: Provenance = field(default_factory=Provenance)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method that could answer a request. `source` names the data it works from: a new one makes a new plan."""

    method: Method
    source: str | None
    allocate: Callable[[], Allocation]


class Planner:
    """Answers plan requests from what is stored. Thread-safe; blocks, so call it off the event loop."""

    def __init__(self, repository: Repository, predictors: PredictorCache) -> None:
        self._repository = repository
        self._predictors = predictors
        self._scans = ScanFinder(repository)

    def plan(self, request: PlanRequest) -> PruningPlan:
        """The plan for `request`. Equal requests get the very same plan.

        Raises:
            NotFoundError: the model or the device is unknown.
            InfeasibleTargetError: no widths remove that much; `nearest` is the most sparsity that works.
            InputError: the method that was asked for lacks its data.
            CheckpointError: `lop` was asked for and this version cannot read the predictor.
        """
        model = self._repository.get_model(request.model)
        # -0.0 + 0.0 is 0.0: both zeros are the same request.
        target = PlanTarget(sparsity=request.sparsity + 0.0, scope=request.scope, device=request.device)
        if target.device is not None:
            get_device(target.device)
        budget = ffn_parameter_budget(model.anatomy, request.sparsity, request.scope, round_to=request.round_to)
        notes = [f"FFN widths are multiples of {request.round_to}"]
        for candidate in self._candidates(model, request, budget, notes):
            key = _request_key(model, target, request.round_to, candidate, notes)
            if (stored := self._repository.find_plan(key)) is not None:
                return stored.plan
            try:
                allocation = candidate.allocate()
            except InfeasibleTargetError as error:
                if request.method is not None:
                    raise _in_sparsity(error, model, request) from error
                notes.append(f"{candidate.method}: this target is outside the widths it was made with")
                continue
            except CheckpointError as error:
                if request.method is not None:
                    raise
                _logger.warning("predictor %s cannot be used: %s", candidate.source, error)
                notes.append(f"{candidate.method}: this version cannot read predictor {candidate.source}")
                continue
            plan = _make_plan(model, target, budget, candidate.method, allocation, notes)
            return self._repository.add_plan(PlanRecord(key, plan)).plan
        raise LopError("the uniform method answers every feasible target", values=f"{model.id}, {target!r}")

    def preload(self) -> None:
        """Load the newest predictor of each model, as far as the cache holds them, and let each predict once.

        Torch sets itself up in its first forward pass: time that no request should pay.
        """
        newest = {p.model_id: p for p in self._repository.list_predictors()}
        for record in sorted(newest.values(), key=lambda p: p.created_at)[-self._predictors.capacity :]:
            try:
                anatomy = self._repository.get_model(record.model_id).anatomy
                self._predictors.predict(record, anatomy, anatomy.ffn_parameters // 2, round_to=DEFAULT_ROUND_TO)
            except InputError as error:
                _logger.warning("predictor %s of model %s cannot be used: %s", record.id, record.model_id, error)

    def _candidates(
        self, model: ModelRecord, request: PlanRequest, budget: int, notes: list[str]
    ) -> Iterator[Candidate]:
        """Methods that can answer, best first; `notes` is told why a better one cannot."""
        asked = request.method
        if asked in (None, Method.LOP):
            predictor = self._repository.latest_predictor(model.id)
            if predictor is not None:
                yield Candidate(Method.LOP, predictor.id, lambda: self._predict(model, predictor, request, budget))
            elif asked is not None:
                raise InputError(
                    "method 'lop' needs a trained predictor",
                    values=f"model {model.id!r} has none",
                    remedy="Train one with `lop train`, or leave `method` out",
                )
            else:
                notes.append("lop: no predictor is trained for this model")
        if asked in (None, Method.ADDITIVE_DP):
            scan = self._scans.find(model)
            if scan is not None:
                yield Candidate(Method.ADDITIVE_DP, scan.id, lambda: _allocate_additively(model, scan, request, budget))
            elif asked is not None:
                raise InputError(
                    "method 'additive-dp' needs a complete one-layer sensitivity scan",
                    values=f"model {model.id!r} has none",
                    remedy="Run `lop search`, which begins with one, or leave `method` out",
                )
            else:
                notes.append("additive-dp: no complete one-layer sensitivity scan is stored")
        if asked in (None, Method.UNIFORM):
            yield Candidate(
                Method.UNIFORM,
                None,
                lambda: Allocation(uniform_widths(model.anatomy, budget, round_to=request.round_to)),
            )

    def _predict(self, model: ModelRecord, record: PredictorRecord, request: PlanRequest, budget: int) -> Allocation:
        prediction = self._predictors.predict(record, model.anatomy, budget, round_to=request.round_to)
        info = self._predictors.get(record).info
        return Allocation(
            prediction.widths,
            Predicted(quality=prediction.kl, interval=prediction.interval),
            Provenance(predictor=record.id, samples=info.num_samples, calibration=info.calibration_id, seed=info.seed),
        )


def _allocate_additively(model: ModelRecord, scan: SensitivityScan, request: PlanRequest, budget: int) -> Allocation:
    """The optimum of the summed one-layer sensitivities on the scan's grid, repaired to the request's `round_to`.

    Nothing is predicted: the sum of one-layer divergences is far off where layers interact, at high sparsity.
    """
    grid, table = scan.grid, scan.table
    optimum, _ = additive_dp(grid, table, budget)
    levels = fill_up(grid, optimum, budget, table)
    # What one more channel is worth: the slope of the table to the next level up.
    worth = [
        float(row[k - 1] - row[k]) / (widths[k] - widths[k - 1]) if k < grid.num_levels else 0.0
        for k, row, widths in zip(levels, table, grid.widths, strict=True)
    ]
    widths = repair_widths(model.anatomy, grid.widths_of(levels), budget, round_to=request.round_to, marginal=worth)
    return Allocation(widths, provenance=Provenance(samples=scan.num_samples, calibration=scan.calibration_id))


def _make_plan(
    model: ModelRecord,
    target: PlanTarget,
    budget: int,
    method: Method,
    allocation: Allocation,
    notes: list[str],
) -> PruningPlan:
    """The plan document, after a check that it keeps to the target whatever the method did."""
    anatomy, widths = model.anatomy, list(allocation.widths)
    kept = sum(w * x.ffn_parameters_per_channel for w, x in zip(widths, anatomy.layers, strict=True))
    # 1e-9 is the slack of `ffn_parameter_budget`.
    short = achieved_sparsity(anatomy, widths)[target.scope] < (target.sparsity or 0.0) - 1e-9
    if kept > budget or short or any(not 0 < w <= x.ffn_width for w, x in zip(widths, anatomy.layers, strict=True)):
        raise LopError("a plan never exceeds its target", values=f"{method}: {widths}, {kept} of {budget} parameters")
    if target.device is not None:
        device = get_device(target.device)
        needed = price(anatomy, widths).memory_bytes
        if needed > device.memory_bytes:
            notes = [*notes, f"weights and KV cache need {needed} bytes, {device.id} has {device.memory_bytes}"]
    return make_plan(
        anatomy,
        widths,
        model_id=model.id,
        target=target,
        ranking=PlanRanking(sha256=model.ranking_sha256, url=ranking_url(model.id)),
        method=method.value,
        predicted=allocation.predicted,
        provenance=allocation.provenance.model_copy(update={"note": "; ".join(notes)}),
    )


def _request_key(model: ModelRecord, target: PlanTarget, round_to: int, candidate: Candidate, notes: list[str]) -> str:
    """What makes two requests the same: everything that the plan depends on, and nothing else."""
    return content_id(
        {
            "model": model.id,
            "ranking": model.ranking_sha256,
            "target": target.model_dump(mode="json"),
            "round_to": round_to,
            "method": candidate.method,
            "source": candidate.source,
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
