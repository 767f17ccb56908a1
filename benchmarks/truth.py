"""Does any plan exceed what was asked for? Random feasible requests, each plan built for real and counted again.

Requests are over sparsities of every scope and budgets of every kind, one limit and several, on every device of the
catalogue, on this machine, which is measured for it, and on none, with random workloads, roundings and tensor
parallelism. Every plan's model is built on the meta device from the config that `lop apply` would write, and counted
there without the planner's arithmetic: widths, parameters, weights, KV cache and operations (`benchmarks.built_costs`),
weight files, by safetensors itself (`built_files`), latency (`built_latency`). The activation bound is the product's
own in those. Some plans are applied to the checkpoint: their files are weighed, and what answering a prompt with a
picture takes in memory is held against that bound (`built_activations`). As many random budgets again are over FFN
widths, KV groups and skips (`truth_joint`).

`python -m benchmarks.truth` registers the reference model and one of LLaVA-1.5-7B's size, scans the reference's layers
on a few conversations, and checks 20,000 plans: up to three quarters of an hour on two busy cores. It writes
`results/truth.json`.
"""

import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.machine import write_results
from benchmarks.subject import REFERENCE
from benchmarks.truth_applied import Applied, apply_plan
from benchmarks.truth_checks import LIMITS, Checked, check_plan
from benchmarks.truth_joint import PROFILED_SHARE, measure_joint, random_workload
from benchmarks.truth_subjects import TruthSubject, in_chunks, register_large, register_machine, register_reference
from lop.console.console import bar
from pruning.allocators.methods import Method
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.devices.catalogue import DEVICES
from pruning.devices.device import Device
from pruning.devices.latency import latency_model
from pruning.errors import InputError
from pruning.planning.budget import limits_for_budget
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.limits import LimitKind
from pruning.planning.plan import PruningPlan
from pruning.planning.plan_parts import INT64_MAX
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope, scope_parameters
from pruning.planning.space import Space
from pruning.planning.target import limits_for_sparsity
from pruning.planning.workload import Budget, Workload
from service.devices import list_devices
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.sql_repository import open_repository

NUM_REQUESTS = 10_000
NUM_SAVED = 36
ROUNDINGS = (1, 2, 8, 8, 8, 16, 64)
PARALLEL = (1, 1, 1, 2, 4)
RUNS = ("benchmarks.truth",)
"""What the processes run that check plans; they import more than the one that starts them."""


class RequestMaker:
    """Random requests that can be met, on `devices` and on none. Deterministic for a seed."""

    def __init__(
        self, anatomy: ModelAnatomy, model_id: str, seed: int, devices: Sequence[Device] = tuple(DEVICES.values())
    ) -> None:
        self._anatomy, self._model_id, self._devices = anatomy, model_id, devices
        self._profiled = [device for device in devices if device.is_measured]
        self._random = random.Random(seed)

    def make(self) -> PlanRequest:
        """A sparsity, a budget of one to four limits, or a device alone."""
        draw = self._random
        device = draw.choice([None, *self._devices])
        if self._profiled and draw.random() < PROFILED_SHARE:
            device = draw.choice(self._profiled)
        tp_size = draw.choice([n for n in PARALLEL if self._can_share(n)])
        fields: dict[str, Any] = {
            "model": self._model_id,
            "device": None if device is None else device.id,
            "round_to": draw.choice(ROUNDINGS),
            "tp_size": tp_size,
            "method": draw.choice([None, None, None, *Method]),
        }
        space = ffn_widths(self._anatomy, round_to=fields["round_to"], tp_size=tp_size)
        kind = draw.random()
        if kind < 0.15:
            scope = draw.choice(list(Scope))
            most = self._greatest_sparsity(space, scope)
            return PlanRequest(**fields, scope=scope, sparsity=draw.uniform(0, most))
        workload = random_workload(device, draw)
        limits = self._limits(space, workload, device)
        if device is not None and limits["memory_bytes"][0] > device.memory_bytes:
            device = fields["device"] = None
            limits = self._limits(space, workload, None)
        names = draw.sample([name for name in LIMITS if name in limits], draw.choice([1, 1, 2, 3, len(limits)]))
        if device is not None and kind < 0.25:
            return PlanRequest(**fields, budget=Budget(**workload.model_dump()))
        chosen = {name: self._between(name, *limits[name]) for name in names}
        return PlanRequest(**fields, budget=Budget(**chosen, **workload.model_dump()))

    def _can_share(self, tp_size: int) -> bool:
        layer = self._anatomy.layers[0]
        return layer.num_heads % tp_size == 0 and layer.num_kv_groups % tp_size == 0

    def _greatest_sparsity(self, space: Space, scope: Scope) -> float:
        (limit,) = limits_for_sparsity(self._anatomy, space, 0.0, scope).limits
        # Less what rounding could take.
        return max((self._anatomy.ffn_parameters - limit.least) / scope_parameters(self._anatomy, scope) - 1e-6, 0.0)

    def _limits(self, space: Space, workload: Workload, device: Device | None) -> dict[str, tuple[int, int]]:
        """What the narrowest and the widest model cost under each limit, as the tables count: (least, most)."""
        latency = None if device is None else latency_model(device, self._anatomy, workload)
        unlimited: dict[str, Any] = dict.fromkeys(("memory_bytes", "flops", "disk_bytes"), INT64_MAX)
        if latency is not None:
            unlimited["latency_ms"] = 1e12
        budget = Budget(**unlimited, **workload.model_dump())
        limits = limits_for_budget(self._anatomy, space, budget, latency=latency).limits
        return {limit.kind.value: (limit.least, limit.dense) for limit in limits}

    def _between(self, name: str, least: int, most: int) -> float | int:
        count = least + int(self._random.uniform(0, 1.02) * (most - least))
        return LimitKind(name).in_its_unit(count)


def measure_truth(
    database_url: str,
    subjects: Sequence[TruthSubject],
    *,
    num_requests: int = NUM_REQUESTS,
    num_saved: int = NUM_SAVED,
    seed: int = 0,
    processes: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Ask for plans of `subjects`, which are registered in the database, and check every one.

    Plans are stored in the database as every plan is. `on_progress(done, total)` is told of requests.

    Returns:
        A row for each kind of request, and a summary: `budget_violations` plans exceed what was asked,
        `cost_errors` say something of their costs that is not so, `disk_bytes_error` is the greatest difference
        between the bytes that plans predict and those of the files of `saved_plans` applied plans; their models took
        `most_memory_used` of the bound on KV cache and activations at most, `memory_bounds_exceeded` more than it.
        Requests were for `devices` of the catalogue and for `measured` profiles, which may all be of one machine.
    """
    started = time.perf_counter()
    chunks = in_chunks(database_url, subjects, num_requests, f"{seed}")
    checked: list[Checked] = []
    # Processes that are forked may hold locks of torch's threads.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(_check_chunk, *zip(*chunks, strict=True)):
            checked += found
            if on_progress is not None:
                on_progress(len(checked), num_requests)
    applied = _applied(database_url, next(x for x in subjects if x.is_whole), num_saved, seed)
    used = [x.used for x in checked if x.used is not None]
    asked = {x.device for x in checked if x.device is not None}
    summary = {
        "requests": len(checked),
        "budget_violations": sum(bool(x.exceeded) for x in checked),
        "cost_errors": sum(bool(x.differing) for x in checked),
        "disk_bytes_error": max(abs(x.disk_error) for x in applied),
        "saved_plans": len(applied),
        "memory_bounds_exceeded": sum(x.memory_used > 1 for x in applied),
        "most_memory_used": max(x.memory_used for x in applied),
        "mean_use_of_tightest_limit": mean(used),
        "methods": dict(Counter(x.method for x in checked)),
        "devices": len(asked & DEVICES.keys()),
        "measured": len(asked - DEVICES.keys()),
        "latencies_by_tables": sum(x.is_measured for x in checked),
        "violations": [
            f"{x.model} {x.method} {x.asked} {x.device}: {x.exceeded + x.differing}"
            for x in checked
            if x.exceeded + x.differing
        ][:9],
        "minutes": (time.perf_counter() - started) / 60,
    }
    kinds = sorted({(x.model, x.asked) for x in checked})
    rows = [_row(model, asked, [x for x in checked if (x.model, x.asked) == (model, asked)]) for model, asked in kinds]
    return rows, summary


def _row(model: str, asked: str, checked: Sequence[Checked]) -> dict[str, Any]:
    used = [x.used for x in checked if x.used is not None]
    return {
        "model": model,
        "asked": asked,
        "requests": len(checked),
        "budget_violations": sum(bool(x.exceeded) for x in checked),
        "cost_errors": sum(bool(x.differing) for x in checked),
        "mean_use_of_tightest_limit": mean(used) if used else None,
    }


def _check_chunk(database_url: str, subject: TruthSubject, count: int, seed: str) -> list[Checked]:
    """Check `count` requests for one model, in a process of its own."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    checked = []
    with open_repository(database_url) as repository, TemporaryDirectory() as folder:
        planner = Planner(repository, PredictorCache(repository, capacity=1))
        anatomy = repository.get_model(subject.model_id).anatomy
        devices = {device.id: device for device in list_devices(repository)}
        maker = RequestMaker(anatomy, subject.model_id, random.Random(seed).getrandbits(63), tuple(devices.values()))
        for _ in range(count):
            request, plan = _plan_somehow(planner, maker.make())
            checked.append(check_plan(request, plan, anatomy, subject.source, Path(folder), devices=devices))
    return checked


def _plan_somehow(planner: Planner, request: PlanRequest) -> tuple[PlanRequest, PruningPlan]:
    """The plan of the method that is asked for, or, where that has no data or cannot go as far, of the default one."""
    try:
        return request, planner.plan(request)
    except InputError:
        if request.method is None:
            raise
        request = request.model_copy(update={"method": None})
        return request, planner.plan(request)


def _applied(database_url: str, subject: TruthSubject, count: int, seed: int) -> list[Applied]:
    """`count` plans, applied to the checkpoint: their files weighed, and their models run."""
    found = []
    with open_repository(database_url) as repository, TemporaryDirectory() as folder:
        planner = Planner(repository, PredictorCache(repository, capacity=1))
        anatomy = repository.get_model(subject.model_id).anatomy
        maker = RequestMaker(anatomy, subject.model_id, seed + 1)
        for index in range(count):
            request = maker.make()
            if index % 3 == 0:  # one in three with biases
                request = request.model_copy(update={"method": Method.FLAP})
            _, plan = _plan_somehow(planner, request)
            ranking = Ranking.from_bytes(repository.get_artifact(plan.ranking.sha256).content)
            found.append(apply_plan(subject, plan, ranking, anatomy, Path(folder) / str(index), batch=1 + index % 3))
    return found


def main(
    requests: Annotated[int, typer.Option(min=1, help="Plans to ask for.")] = NUM_REQUESTS,
    saved: Annotated[int, typer.Option(min=1, help="Plans to apply to the checkpoint.")] = NUM_SAVED,
    seed: Annotated[int, typer.Option(min=0, help="Of the requests.")] = 0,
    reference: Annotated[Path, typer.Option(help="Folder with model/ and data/.")] = REFERENCE,
) -> None:
    """Write results/truth.json."""
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'truth.db'}"
        with open_repository(url, create=True) as repository:
            subjects = [register_reference(repository, reference), register_large(repository, Path(folder) / "large")]
            register_machine(repository, subjects[0])
        with bar("plans") as on_progress:
            rows, summary = measure_truth(
                url, subjects, num_requests=requests, num_saved=saved, seed=seed, on_progress=on_progress
            )
        with bar("joint budgets") as on_progress:
            joint_rows, joint = measure_joint(
                url, subjects, num_budgets=requests, num_saved=saved, seed=seed, on_progress=on_progress
            )
        rows, summary = rows + joint_rows, summary | joint
    path = write_results("truth", summary, rows, runs=RUNS)
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
