"""All methods side by side: the plans that they give for the same targets, scored on the same conversations."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.allocators.methods import Method
from pruning.anatomy.architecture import DENSE, Architecture
from pruning.data.conversations import Conversation, calibration_id
from pruning.errors import InfeasibleTargetError, InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.target import usual_scope
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.records import ModelRecord

if TYPE_CHECKING:
    from pruning.data.batches import Batch


@dataclass(frozen=True, slots=True)
class ComparedPlan:
    """One method's plan for one target, and what it is worth on the conversations.

    Attributes:
        achieved_sparsity: of the scope that was asked for.
        kl: mean KL to the dense model over answer tokens, in nats.
        nll: mean negative log-likelihood of the answer tokens, in nats.
        accuracy: fraction of answers that are exact.
        agreement: fraction of answer tokens at which its first choice is the dense model's.
        filled_up: no point of a search itself, but what one found for another target, with units added up to this.
    """

    method: str
    sparsity: float
    achieved_sparsity: float
    parameters: int
    kl: float
    nll: float
    accuracy: float
    plan_id: str
    filled_up: bool = False
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, and what to know about it.

    Attributes:
        plans: by method and sparsity.
        architectures: what each of them keeps.
        dense: metrics of the dense model on the conversations.
        missing: why plans are not there: the data of a method are missing, or targets out of its reach.
        calibrated: methods with plans that were chosen on the very conversations they are scored on.
    """

    plans: tuple[ComparedPlan, ...]
    architectures: tuple[Architecture, ...]
    dense: Metrics
    missing: tuple[str, ...]
    calibrated: tuple[str, ...] = ()


def compare_methods(
    repository: Repository,
    model_id: str,
    conversations: Sequence[Conversation],
    sparsities: Sequence[float],
    *,
    methods: Sequence[Method] | None = None,
    scope: Scope | None = None,
    space: SpaceName = SpaceName.FFN,
    round_to: int,
    on_plan: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Score the plans of `methods` in `space` (default: all that the stored data allow) on `conversations`.

    `scope` is what the sparsities count: by default what is usual in that space. Skipped sub-layers are not run.
    `on_plan(done, total)` is told of progress.

    Raises:
        NotFoundError: the model is not registered.
        InputError: a method that was asked for lacks its data, or none has any; or scores are not finite.
        FingerprintMismatchError: the checkpoint changed since it was registered.
    """
    from engines.memo import check_finite
    from lop.workflows.engines import check_weights
    from pruning.checkpoints.loading import load_processor
    from pruning.data.batches import make_batches

    if space.has_density:
        raise InputError(
            "methods are compared by what their plans cut",
            values=f"space '{space}'",
            remedy="Write plans of densities with `lop sparsify --plan`, and score the folders with `lop evaluate`",
        )
    scope = scope or usual_scope(space)
    asked = {"scope": scope, "space": space, "round_to": round_to}
    plans, missing = _request_plans(repository, model_id, sparsities, methods, asked)
    model = repository.get_model(model_id)
    check_weights(model)
    folder = Path(model.path)
    batches = make_batches(conversations, load_processor(folder))
    compared: dict[str, ComparedPlan] = {}

    def scored(sparsity: float, plan: PruningPlan, metrics: Metrics) -> None:
        check_finite(plan.architecture(model.anatomy), metrics)
        compared[plan.plan_id] = ComparedPlan(
            method=plan.method,
            sparsity=sparsity,
            achieved_sparsity=plan.achieved.removed[scope],
            parameters=plan.achieved.parameters,
            kl=metrics.kl,
            nll=metrics.nll,
            accuracy=metrics.accuracy,
            plan_id=plan.plan_id,
            filled_up=plan.provenance.filled_up,
            agreement=metrics.agreement,
        )
        if on_plan is not None:
            on_plan(len(compared), len(plans))

    dense: Metrics | None = None
    # One evaluator a ranking: most methods share the model's.
    for sha256 in dict.fromkeys(plan.ranking.sha256 for _, plan in plans):
        ranking = Ranking.from_bytes(repository.get_artifact(sha256).content)
        own = [(sparsity, plan) for sparsity, plan in plans if plan.ranking.sha256 == sha256]
        of_dense = _score(model, batches, ranking, own, scored, with_dense=dense is None)
        dense = dense or of_dense
        gc.collect()  # the model of this ranking goes before the next one is loaded
    data = calibration_id(conversations)
    assert dense is not None  # there is a plan, so there was a ranking
    return Comparison(
        dense=dense,
        plans=tuple(compared[plan.plan_id] for _, plan in plans),
        architectures=tuple(plan.architecture(model.anatomy) for _, plan in plans),
        missing=tuple(missing),
        calibrated=tuple(dict.fromkeys(plan.method for _, plan in plans if plan.provenance.calibration == data)),
    )


def _score(
    model: ModelRecord,
    batches: "Sequence[Batch]",
    ranking: Ranking,
    plans: Sequence[tuple[float, PruningPlan]],
    on_scored: Callable[[float, PruningPlan, Metrics], None],
    *,
    with_dense: bool,
) -> Metrics | None:
    """Score plans of one ranking. The model is held by this call alone: there is room for one on a device.

    Returns the dense model's metrics, which are those of every ranking, if they are asked for.
    """
    from lop.workflows.compute import load_for_compute
    from lop.workflows.products import solver_of
    from pruning.anatomy.dtypes import torch_dtype
    from pruning.measuring.evaluation import ConfigurationEvaluator
    from pruning.measuring.rounded_weights import RoundedWeights

    # A method that ranks by itself counts on no reconstruction.
    solver = solver_of(model) if ranking.sha256 == model.ranking_sha256 else None
    evaluator = ConfigurationEvaluator(
        load_for_compute(Path(model.path)),
        batches,
        ranking,
        solver=solver,
        rounder=RoundedWeights(torch_dtype(model.anatomy.dtype)),
    )
    for sparsity, plan in plans:
        on_scored(sparsity, plan, *evaluator([plan.architecture(model.anatomy)]))
    return evaluator([DENSE])[0] if with_dense else None


def _request_plans(
    repository: Repository,
    model_id: str,
    sparsities: Sequence[float],
    methods: Sequence[Method] | None,
    asked: dict[str, Any],
) -> tuple[list[tuple[float, PruningPlan]], list[str]]:
    """The plans with the sparsity asked for, method by method, and what is missing: a line a method and reason.

    `asked` is the rest of the requests. Methods that are for other spaces are left out unless they are named.
    """
    from service.planner import Planner
    from service.predictor_cache import PredictorCache

    planner = Planner(repository, PredictorCache(repository, capacity=1))
    plans: list[tuple[float, PruningPlan]] = []
    missing: dict[tuple[Method, str], list[tuple[float, InputError]]] = {}
    for method in dict.fromkeys(methods or (method for method in Method if asked["space"] in method.spaces)):
        for sparsity in dict.fromkeys(sparsities):
            request = PlanRequest(model=model_id, sparsity=sparsity, method=method, **asked)
            try:
                plans.append((sparsity, planner.plan(request)))
            except InfeasibleTargetError as error:
                missing.setdefault((method, error.rule), []).append((sparsity, error))
            except InputError as error:
                if methods is not None:
                    raise
                missing.setdefault((method, error.rule), []).append((sparsity, error))
    reasons = [_reason(method, refused) for (method, _), refused in missing.items()]
    if not plans:
        raise InputError("a comparison needs a method that can answer", values="; ".join(reasons))
    return plans, reasons


def _reason(method: Method, refused: Sequence[tuple[float, InputError]]) -> str:
    """One line for all sparsities that were refused for one reason; a remedy only if it is the same for all."""
    errors = [error for _, error in refused]
    text = errors[0].rule
    if len({str(error) for error in errors}) == 1:
        text = str(errors[0])
    elif len({error.values for error in errors}) == 1 and errors[0].values:
        text = f"{text} (got {errors[0].values})"
    return f"{method} at {', '.join(f'{sparsity:g}' for sparsity, _ in refused)}: {text}"
