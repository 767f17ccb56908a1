"""All methods side by side: the plans that they give for the same targets, scored on the same conversations."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruning.conversations import Conversation
from pruning.errors import InfeasibleTargetError, InputError
from pruning.plan import PruningPlan
from pruning.ranking import Ranking
from pruning.target import Scope
from service.methods.names import Method
from service.schemas import PlanRequest
from storage.contract import Repository


@dataclass(frozen=True, slots=True)
class ComparedPlan:
    """One method's plan for one target, and what it is worth on the conversations.

    Attributes:
        achieved_sparsity: of the scope that was asked for.
        kl: mean KL to the dense model over answer tokens, in nats.
        nll: mean negative log-likelihood of the answer tokens, in nats.
        accuracy: fraction of answers that are exact.
    """

    method: str
    sparsity: float
    achieved_sparsity: float
    parameters: int
    kl: float
    nll: float
    accuracy: float
    plan_id: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The plans by method and sparsity, and why methods are missing: their data are, or the target is out of reach."""

    plans: tuple[ComparedPlan, ...]
    missing: tuple[str, ...]


def compare_methods(
    repository: Repository,
    model_id: str,
    conversations: Sequence[Conversation],
    sparsities: Sequence[float],
    *,
    methods: Sequence[Method] | None = None,
    scope: Scope = Scope.FFN,
    round_to: int,
    on_plan: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Score the plans of `methods` (default: all that the stored data allow) on `conversations`.

    `on_plan(done, total)` is told of progress.

    Raises:
        NotFoundError: the model is not registered.
        InputError: a method that was asked for lacks its data, or none has any.
        FingerprintMismatchError: the checkpoint changed since it was registered.
    """
    from lop.compute import load_for_compute
    from lop.engines import check_weights
    from pruning.batches import make_batches
    from pruning.checkpoint import load_processor
    from pruning.evaluation import ConfigurationEvaluator

    plans, missing = _request_plans(repository, model_id, sparsities, methods, scope, round_to)
    model = repository.get_model(model_id)
    check_weights(model)
    folder = Path(model.path)
    batches = make_batches(conversations, load_processor(folder))
    compared: dict[str, ComparedPlan] = {}
    # One evaluator a ranking: most methods share the model's.
    for sha256 in dict.fromkeys(plan.ranking.sha256 for _, plan in plans):
        ranking = Ranking.from_bytes(repository.get_artifact(sha256).content)
        evaluate = ConfigurationEvaluator(load_for_compute(folder), batches, ranking)
        for sparsity, plan in plans:
            if plan.ranking.sha256 != sha256:
                continue
            metrics = evaluate.evaluate(plan.ffn_widths)
            compared[plan.plan_id] = ComparedPlan(
                method=plan.method,
                sparsity=sparsity,
                achieved_sparsity=plan.achieved.sparsity[scope],
                parameters=plan.achieved.parameters,
                kl=metrics.kl,
                nll=metrics.nll,
                accuracy=metrics.accuracy,
                plan_id=plan.plan_id,
            )
            if on_plan is not None:
                on_plan(len(compared), len(plans))
    return Comparison(tuple(compared[plan.plan_id] for _, plan in plans), tuple(missing))


def _request_plans(
    repository: Repository,
    model_id: str,
    sparsities: Sequence[float],
    methods: Sequence[Method] | None,
    scope: Scope,
    round_to: int,
) -> tuple[list[tuple[float, PruningPlan]], list[str]]:
    """The plans with the sparsity asked for, method by method, and what could not be had."""
    from service.planner import Planner
    from service.predictor_cache import PredictorCache
    from service.settings import load_settings

    threads = load_settings().torch_threads
    planner = Planner(repository, PredictorCache(repository, capacity=1, torch_threads=threads))
    plans: list[tuple[float, PruningPlan]] = []
    missing: list[str] = []
    for method in methods or tuple(Method):
        for sparsity in sparsities:
            request = PlanRequest(model=model_id, sparsity=sparsity, scope=scope, round_to=round_to, method=method)
            try:
                plans.append((sparsity, planner.plan(request)))
            except InfeasibleTargetError as error:
                missing.append(f"{method} at {sparsity:g}: {error}")
            except InputError as error:
                if methods is not None:
                    raise
                missing.append(f"{method} at {sparsity:g}: {error}")
    if not plans:
        raise InputError("a comparison needs a method that can answer", values="; ".join(missing))
    return plans, missing
