# mypy: ignore-errors
# A record: its imports are those of the tree that it is run in, see the docstring of make_replay.
"""Plan requests of every kind, and what the planner answers: plans, and errors of those that cannot be met.

Asked are, each request once:

- what `benchmarks.truth` asks at random of every model;
- of every method so many of each kind: a sparsity, one limit of each kind, several limits on no device, on devices of
  the catalogue and on this machine, which was measured;
- several limits of which each is nearly used up by equal retention, so that more than one can bind;
- a thinned grid of sparsities, methods, scopes, roundings and tensor parallelism;
- what `benchmarks.serving` asks;
- requests that fail, one for each reason.

A latency is asked of a device, whose memory is then a limit too: a request with a latency has several limits.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from pruning.plan import Budget, Workload
from pruning.target import Scope
from service.methods.names import Method

from benchmarks import serving, truth_subjects
from benchmarks.truth import RequestMaker
from pruning.devices import Device
from pruning.errors import LopError
from service.app import create_app
from service.devices import list_devices
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from service.settings import Settings
from storage.contract import Repository
from storage.sql_repository import open_repository
from tests.assets.replay_files import LIMITS, limits_asked

REFERENCE_ID, SCANNED_ID = "reference", "scanned"

AS_ASKED = {REFERENCE_ID: 120, SCANNED_ID: 30, truth_subjects.LARGE: 30, serving.LARGE: 20}
"""Requests of `benchmarks.truth` of each model, whatever becomes of them."""

WANTED = {
    "sparsity": 4,
    "memory_bytes": 2,
    "flops": 2,
    "disk_bytes": 2,
    "memory_bytes, catalogue": 2,
    "memory_bytes, measured": 1,
    "several": 4,
    "several, catalogue": 5,
    "several, measured": 5,
}
"""Plans of each kind that every method gives of every model, where it has data."""

STATISTICAL = (Method.WANDA_SP, Method.FLAP, Method.LLM_PRUNER, Method.OWL, Method.ECOFLAP, Method.SHORTGPT)
METHODS: dict[str, Sequence[Method | None]] = {
    REFERENCE_ID: (None, *Method),
    SCANNED_ID: (None, Method.ADDITIVE_DP, Method.UNIFORM, Method.WANDA_SP, Method.FLAP),
    truth_subjects.LARGE: (Method.UNIFORM,),
    serving.LARGE: (Method.LOP, Method.ADDITIVE_DP),
}
MOST_DRAWS = 2500
FAILURES_KEPT = 1
"""Of each method and kind, while plans are drawn."""

TIGHT_METHODS: dict[str, Sequence[Method]] = {
    REFERENCE_ID: tuple(Method),
    SCANNED_ID: (Method.ADDITIVE_DP, Method.SHORTGPT),
    truth_subjects.LARGE: (Method.UNIFORM,),
    serving.LARGE: (Method.LOP, Method.ADDITIVE_DP, Method.UNIFORM),
}
TIGHT_SPARSITIES = (0.15, 0.3, 0.45, 0.6)
TIGHTNESS = (-0.01, 0.02)
"""Of a limit against what equal retention costs, as a fraction of that."""

GRID_PLANS, GRID_FAILURES = 180, 20
SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85)
ROUNDINGS, PARALLEL = (1, 8, 16, 64), (1, 2)

SERVED = {REFERENCE_ID: 36, serving.LARGE: 18}
ROUNDED = 3
"""Of each of `serving.ROUNDED`."""


MEASURED = (truth_subjects.MACHINE, "for-reference", "for-large")


def kind_of(request: dict[str, Any]) -> str:
    """The limit, or "several", and where; as the keys of `WANTED`."""
    limits = limits_asked(request)
    if limits == ("sparsity",):
        return "sparsity"
    name = limits[0] if len(limits) == 1 else "several"
    if request["device"] is None:
        return name
    return f"{name}, {'measured' if request['device'] in MEASURED else 'catalogue'}"


@dataclass
class Answers:
    """What was asked and answered, in the order of asking; every request once."""

    planner: Planner
    documents: list[dict[str, Any]] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def ask(self, request: PlanRequest) -> dict[str, Any]:
        """The answer, which is not kept."""
        document: dict[str, Any] = {"request": request.model_dump(mode="json")}
        try:
            plan = self.planner.plan(request)
        except LopError as error:
            return document | {"error": error_document(error)}
        return document | {"plan": plan.model_dump(mode="json", exclude={"created_at"})}

    def plan(self, request: PlanRequest) -> dict[str, Any]:
        """The plan, which there is and which is not kept."""
        plan: dict[str, Any] = self.ask(request)["plan"]
        return plan

    def keep(self, answer: dict[str, Any]) -> None:
        key = json.dumps(answer["request"], sort_keys=True)
        if key not in self._known:
            self._known.add(key)
            self.documents.append(answer)

    def keep_all(self, requests: Iterable[PlanRequest]) -> None:
        for request in requests:
            self.keep(self.ask(request))


def error_document(error: LopError) -> dict[str, Any]:
    """What of an error a later version has to say too: the remedy may change."""
    return {
        "class": type(error).__name__,
        "rule": error.rule,
        "values": error.values,
        "nearest": getattr(error, "nearest", None),
        "binding": getattr(error, "binding", None),
        "nearest_values": getattr(error, "nearest_values", None),
    }


def ask_everything(url: str) -> list[dict[str, Any]]:
    """All answers of the planner over the database at `url`, which gets the plans."""
    with open_repository(url) as repository:
        answers = Answers(Planner(repository, PredictorCache(repository, capacity=4)))
        devices = list_devices(repository)
        for seed, (model_id, count) in enumerate(AS_ASKED.items()):
            maker = RequestMaker(repository.get_model(model_id).anatomy, model_id, seed, devices)
            answers.keep_all(maker.make() for _ in range(count))
        for model_id, methods in METHODS.items():
            for method in methods:
                _ask_of_every_kind(answers, repository, model_id, method, devices)
        answers.keep_all(_tight_requests(answers))
        _ask_grid(answers)
        answers.keep_all(_serving_requests(url))
        answers.keep_all(_failing_requests())
    return answers.documents


def _ask_of_every_kind(
    answers: Answers, repository: Repository, model_id: str, method: Method | None, devices: Sequence[Device]
) -> None:
    """Draw requests for `method` until there are as many plans of each kind as are wanted, or `MOST_DRAWS` were."""
    anatomy = repository.get_model(model_id).anatomy
    measured = [device for device in devices if device.id == truth_subjects.MACHINE]
    makers = [RequestMaker(anatomy, model_id, 100, devices), RequestMaker(anatomy, model_id, 101, measured)]
    plans: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for number in range(MOST_DRAWS):
        if all(plans[kind] >= most for kind, most in WANTED.items()):
            return
        request = makers[number % 2].make().model_copy(update={"method": method})
        kind = kind_of(request.model_dump(mode="json"))
        if plans[kind] >= WANTED[kind] or (kind.startswith("several") and len(_given(request)) < 2):
            continue
        answer = answers.ask(request)
        counter, most = (plans, WANTED[kind]) if "plan" in answer else (failures, FAILURES_KEPT)
        if counter[kind] < most:
            counter[kind] += 1
            answers.keep(answer)


def _given(request: PlanRequest) -> list[str]:
    """The limits of its budget."""
    return [name for name in LIMITS if request.budget is not None and getattr(request.budget, name) is not None]


def _tight_requests(answers: Answers) -> Iterator[PlanRequest]:
    """For several limits at once, all near what one plan costs; the workload differs from plan to plan."""
    draw = random.Random(0)
    devices = (None, "jetson-orin-nano-8gb", truth_subjects.MACHINE)
    for model_id, methods in TIGHT_METHODS.items():
        for sparsity, device in product(TIGHT_SPARSITIES, devices):
            usual: dict[str, Any] = {"model": model_id, "round_to": draw.choice((1, 8, 16))}
            narrow = answers.plan(PlanRequest(**usual, sparsity=sparsity, method=Method.UNIFORM))
            workload = {"prompt_tokens": draw.randint(64, 200), "output_tokens": draw.randint(8, 40)}
            fits = device is None or narrow["achieved"]["memory_bytes"] < 4 * 2**30
            usual["device"] = device if fits else "rtx-4090"
            disk = Budget(disk_bytes=narrow["achieved"]["disk_bytes"], **workload)
            costs = answers.plan(PlanRequest(**usual, budget=disk, method=Method.UNIFORM))["achieved"]
            names = draw.sample([name for name in LIMITS if costs[name] is not None], draw.choice((2, 3)))
            limits = {name: type(costs[name])(costs[name] * (1 + draw.uniform(*TIGHTNESS))) for name in names}
            budget = Budget(**limits, **workload)
            yield from (PlanRequest(**usual, budget=budget, method=method) for method in methods)


def _ask_grid(answers: Answers) -> None:
    points = list(product(SPARSITIES, (None, *Method), Scope, ROUNDINGS, PARALLEL))
    random.Random(0).shuffle(points)
    plans = failures = 0
    for sparsity, method, scope, round_to, tp_size in points:
        if plans == GRID_PLANS:
            return
        answer = answers.ask(
            PlanRequest(
                model=REFERENCE_ID, sparsity=sparsity, method=method, scope=scope, round_to=round_to, tp_size=tp_size
            )
        )
        if "plan" in answer:
            plans += 1
        elif failures == GRID_FAILURES:
            continue
        else:
            failures += 1
        answers.keep(answer)


def _serving_requests(url: str) -> list[PlanRequest]:
    """Some of what `benchmarks.serving` asks: its mixes, and its sparsities of other roundings."""
    workload = Workload(prompt_tokens=48, output_tokens=16)
    served = {
        REFERENCE_ID: serving.Served(REFERENCE_ID, 8, "for-reference", workload),
        serving.LARGE: serving.Served(serving.LARGE, serving.ROUND_TO, "for-large", workload),
    }
    bodies: list[dict[str, Any]] = []
    client: Any  # used as the httpx.Client that it behaves as
    with TestClient(create_app(Settings(database_url=url))) as client:
        for model_id, count in SERVED.items():
            bodies += [body for _, body in serving._bodies(client, served[model_id])[:count]]
    rng = np.random.default_rng(0)
    for rounded in serving.ROUNDED.values():
        usual = {"model": rounded.model, "round_to": rounded.round_to, "tp_size": rounded.tp_size, "method": "lop"}
        sparsities = rng.uniform(serving.SMALLEST_SPARSITY, rounded.largest, ROUNDED)
        bodies += [usual | {"sparsity": float(sparsity)} for sparsity in sparsities]
    return [PlanRequest.model_validate_json(json.dumps(body)) for body in bodies]


def _failing_requests() -> list[PlanRequest]:
    """One for each reason why a request cannot be met, but for methods without data."""
    asked: list[dict[str, Any]] = [
        {"model": "unknown", "sparsity": 0.5},
        {"sparsity": 0.5, "device": "unknown"},
        *({"sparsity": 0.99, "scope": scope} for scope in Scope),
        {"sparsity": 0.9, "method": Method.LOP},
        {"sparsity": 0.9, "method": Method.ADDITIVE_DP},
        {"sparsity": 0.97, "method": Method.FLAP, "round_to": 1},
        {"sparsity": 0.5, "tp_size": 3},
        {"sparsity": 0.5, "tp_size": 64},
        {"sparsity": 0.5, "round_to": 4096},
        *({"budget": Budget(**{name: 1000})} for name in ("memory_bytes", "flops", "disk_bytes")),
        {"budget": Budget(latency_ms=1e-3), "device": truth_subjects.MACHINE},
        {"budget": Budget(latency_ms=1e-3), "device": "jetson-orin-nano-8gb"},
        {"budget": Budget(memory_bytes=1000, flops=1000, disk_bytes=1000)},
        {"budget": Budget(memory_bytes=1000, latency_ms=1e-3), "device": truth_subjects.MACHINE},
        {"model": truth_subjects.LARGE, "device": "jetson-orin-nano-8gb"},
    ]
    return [PlanRequest(**({"model": REFERENCE_ID} | fields)) for fields in asked]
