"""Random budgets over FFN widths, KV groups and skips: plans built for real and counted again.

Requests for plans (`benchmarks.truth`) go through the service, and come back with what its methods choose. Here the
limits themselves are held against built models: a random space over both halves of every layer, a budget that it can
meet, and the choice that random worths lead to. One layer always keeps attention, without which no model is cut.
"""

import multiprocessing
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.truth_applied import Applied, apply_plan
from benchmarks.truth_checks import LIMITS, Checked, check_plan
from benchmarks.truth_subjects import TruthSubject, in_chunks
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.devices.device import Device
from pruning.devices.latency import latency_model
from pruning.planning.budget import limits_for_budget
from pruning.planning.cost import achieved_costs
from pruning.planning.limits import Limits
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import Axis, PlanRanking, PlanTarget, PruningPlan
from pruning.planning.plan_parts import INT64_MAX
from pruning.planning.prices import memory_bytes
from pruning.planning.ranking import Ranking
from pruning.planning.space import Decision, Options, Space
from pruning.planning.workload import Budget, Workload
from service.devices import list_devices
from service.schemas import PlanRequest
from storage.sql_repository import open_repository

AXES: tuple[tuple[Axis, ...], ...] = (
    (Axis.FFN,),
    (Axis.ATTENTION,),
    (Axis.SKIP,),
    (Axis.FFN, Axis.SKIP),
    (Axis.FFN, Axis.ATTENTION),
    (Axis.FFN, Axis.ATTENTION, Axis.SKIP),
    (Axis.FFN, Axis.ATTENTION, Axis.SKIP),
)
"""Of each space, equally often. Skips alone are of whole layers, or of single sub-layers."""

PROFILED_SHARE, COVERED_SHARE = 0.1, 0.75
"""Of all budgets: those on a measured device, and of those: with a workload that its tables cover."""

STEPS = (1, 8, 8, 16, 64)


@dataclass(frozen=True)
class JointPlan:
    """A plan for a random budget, which `request` asks for."""

    request: PlanRequest
    plan: PruningPlan
    axes: tuple[Axis, ...]


class JointMaker:
    """Random budgets that can be met, on `devices` and on none, and a plan for each. Deterministic for a seed."""

    def __init__(
        self,
        anatomy: ModelAnatomy,
        model_id: str,
        seed: int,
        *,
        ranking_sha256: str = "0" * 64,
        devices: Sequence[Device] = (),
    ) -> None:
        self._anatomy, self._model_id, self._ranking = anatomy, model_id, PlanRanking(sha256=ranking_sha256)
        self._devices, self._profiled = devices, [device for device in devices if device.is_measured]
        self._random = random.Random(seed)

    def make(self, *, compensates: bool | None = None) -> JointPlan:
        """`compensates`: whether cut down projections get biases; by default one plan in three does."""
        draw = self._random
        compensates = draw.random() < 1 / 3 if compensates is None else compensates
        narrowest = min(layer.ffn_width for layer in self._anatomy.layers)
        axes, step = draw.choice(AXES), draw.choice([step for step in STEPS if step < narrowest])
        space = random_space(self._anatomy, axes, step, draw)
        device = draw.choice([None, *self._devices])
        if self._profiled and draw.random() < PROFILED_SHARE:
            device = draw.choice(self._profiled)
        workload = random_workload(device, draw)
        if device is not None and memory_bytes(self._anatomy, workload).total > device.memory_bytes:
            device = None  # its memory would be a limit, too
        latency = None if device is None else latency_model(device, self._anatomy, workload)
        known = [name for name in LIMITS if name != "latency_ms" or latency is not None]
        names = draw.sample(known, draw.randint(1, len(known)))
        if latency is not None and "latency_ms" not in names and draw.random() < 0.5:
            names.append("latency_ms")
        limits_for = partial(limits_for_budget, self._anatomy, space, latency=latency, compensates=compensates)
        budget = random_budget(limits_for, names, workload, draw)
        limits = limits_for(budget)
        rng = np.random.default_rng(draw.getrandbits(63))
        worth = rng.normal(size=(space.num_decisions, int(space.counts.max())))
        architecture = space.architecture(limits.fit(rng.integers(space.counts), worth))
        named = None if device is None else device.id
        plan = make_plan(
            self._anatomy,
            architecture,
            model_id=self._model_id,
            target=PlanTarget(budget=budget, space=axes, device=named),
            ranking=self._ranking,
            method="random",
            compensates=compensates,
            achieved=achieved_costs(self._anatomy, architecture, workload, compensates=compensates, latency=latency),
        )
        request = PlanRequest(model=self._model_id, budget=budget, round_to=step, device=named)
        return JointPlan(request, plan, axes)


def random_budget(
    limits_for: Callable[[Budget], Limits], names: Sequence[str], workload: Workload, draw: random.Random
) -> Budget:
    """Limits of these `names`, each somewhere between what the smallest and the largest choice cost."""
    free = {name: 1e12 if name == "latency_ms" else INT64_MAX for name in names}
    tables = limits_for(Budget.model_validate(free | workload.model_dump())).limits
    most = {x.kind: x.least + int(draw.uniform(0, 1.02) * (x.dense - x.least)) for x in tables}
    said = {kind.value: kind.in_its_unit(count) for kind, count in most.items()}
    return Budget.model_validate(said | workload.model_dump())


def random_workload(device: Device | None, draw: random.Random) -> Workload:
    """Any; on a measured device mostly one that was measured."""
    if device is not None and device.profile is not None and draw.random() < COVERED_SHARE:
        table = draw.choice(device.profile.layers)
        # The last length is where the longest answer to the longest prompt ends.
        shortest, longest, end = table.prompt_tokens[0], table.prompt_tokens[-2], table.prompt_tokens[-1]
        return Workload(
            batch=table.batch,
            prompt_tokens=draw.randint(shortest, longest),
            output_tokens=draw.randint(1, end - longest),
        )
    return Workload(
        batch=draw.choice([1, 1, 2, 3, 8]),
        prompt_tokens=int(2 ** draw.uniform(0, 11)),
        output_tokens=draw.choice([0, 1, int(2 ** draw.uniform(0, 8))]),
    )


def random_space(anatomy: ModelAnatomy, axes: Sequence[Axis], step: int, draw: random.Random) -> Space:
    """What `axes` may change: FFN widths in multiples of `step`, any number of KV groups, and no units at all."""
    dense, rows = {}, {}
    kept = draw.randrange(anatomy.num_layers)  # its attention stays
    for layer in anatomy.layers:
        for sublayer, axis, each in ((Sublayer.ATTENTION, Axis.ATTENTION, 1), (Sublayer.FFN, Axis.FFN, step)):
            site, most = Site(layer.index, sublayer), layer.units(sublayer)
            units = {most}
            if axis in axes:
                units |= set(range(each, most, each))
            if Axis.SKIP in axes and site != Site(kept, Sublayer.ATTENTION):
                units.add(0)
            dense[site], rows[site] = most, sorted(units)
    if tuple(axes) == (Axis.SKIP,) and draw.random() < 0.5:
        layers = [(Site(i, Sublayer.ATTENTION), Site(i, Sublayer.FFN)) for i in range(anatomy.num_layers) if i != kept]
        decisions = [Decision(sites, tuple(_options([0, dense[site]]) for site in sites)) for sites in layers]
    else:
        decisions = [Decision((site,), (_options(units),)) for site, units in rows.items() if len(units) > 1]
    return Space(tuple(decisions), {site: dense[site] for x in decisions for site in x.sites})


def _options(units: Sequence[int]) -> Options:
    return Options(np.array(units, dtype=np.int64))


def measure_joint(
    database_url: str,
    subjects: Sequence[TruthSubject],
    *,
    num_budgets: int,
    num_saved: int,
    seed: int = 0,
    processes: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Check a plan for each of `num_budgets` random budgets of `subjects`, which are registered in the database.

    Returns:
        A row for each space, and a summary: `joint_violations` plans exceed their budgets, `joint_cost_errors` say
        something of their costs that is not so, `joint_skipping` skip something, `joint_latencies_by_tables` have
        measured times. Of `joint_saved_plans` that were
        applied, the greatest difference in the bytes of files, and the largest share of the memory bound.
    """
    chunks = in_chunks(database_url, subjects, num_budgets, f"joint {seed}")
    found: list[tuple[tuple[Axis, ...], bool, Checked]] = []
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for chunk in pool.map(_check_chunk, *zip(*chunks, strict=True)):
            found += chunk
            if on_progress is not None:
                on_progress(len(found), num_budgets)
    applied = _applied(database_url, next(x for x in subjects if x.is_whole), num_saved, seed)
    spaces = sorted({(checked.model, axes) for axes, _, checked in found})
    rows = [_row(*space, [x for axes, _, x in found if (x.model, axes) == space]) for space in spaces]
    broken = [(axes, x) for axes, _, x in found if x.exceeded + x.differing]
    return rows, {
        "joint_budgets": len(found),
        "joint_violations": sum(bool(x.exceeded) for _, _, x in found),
        "joint_cost_errors": sum(bool(x.differing) for _, _, x in found),
        "joint_skipping": sum(skips for _, skips, _ in found),
        "joint_latencies_by_tables": sum(x.is_measured for _, _, x in found),
        "joint_broken": [f"{x.model} {'+'.join(axes)} {x.asked}: {x.exceeded + x.differing}" for axes, x in broken[:9]],
        "joint_saved_plans": len(applied),
        "joint_disk_bytes_error": max(abs(x.disk_error) for x in applied),
        "joint_most_memory_used": max(x.memory_used for x in applied),
    }


def _row(model: str, axes: tuple[Axis, ...], checked: Sequence[Checked]) -> dict[str, Any]:
    used = [x.used for x in checked if x.used is not None]
    return {
        "model": model,
        "space": "+".join(axes),
        "requests": len(checked),
        "budget_violations": sum(bool(x.exceeded) for x in checked),
        "cost_errors": sum(bool(x.differing) for x in checked),
        "mean_use_of_tightest_limit": mean(used) if used else None,
    }


def _check_chunk(
    database_url: str, subject: TruthSubject, count: int, seed: str
) -> list[tuple[tuple[Axis, ...], bool, Checked]]:
    """Check `count` plans of one model, in a process of its own: the axes, whether one skips, what was found."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    with open_repository(database_url) as repository:
        anatomy = repository.get_model(subject.model_id).anatomy
        devices = {device.id: device for device in list_devices(repository)}
    maker = JointMaker(anatomy, subject.model_id, random.Random(seed).getrandbits(63), devices=tuple(devices.values()))
    found = []
    with TemporaryDirectory() as folder:
        for _ in range(count):
            made = maker.make()
            checked = check_plan(made.request, made.plan, anatomy, subject.source, Path(folder), devices=devices)
            found.append((made.axes, _skips(made.plan.architecture(anatomy)), checked))
    return found


def _skips(architecture: Architecture) -> bool:
    return any(option.units == 0 for _, option in architecture.items)


def _applied(database_url: str, subject: TruthSubject, count: int, seed: int) -> list[Applied]:
    """`count` plans, applied to the checkpoint: with the model's ranking, one in three with made-up channel means."""
    found = []
    with open_repository(database_url) as repository, TemporaryDirectory() as folder:
        model = repository.get_model(subject.model_id)
        plain = Ranking.from_bytes(repository.get_artifact(model.ranking_sha256).content)
        means = tuple(np.full(x.ffn_width, 0.01, dtype=np.float32) for x in model.anatomy.layers)
        rankings = (plain, plain, replace(plain, ffn_means=means))
        for index in range(count):
            ranking = rankings[index % 3]
            maker = JointMaker(model.anatomy, model.id, seed + index, ranking_sha256=ranking.sha256)
            plan = maker.make(compensates=ranking.compensates).plan
            out = Path(folder) / str(index)
            found.append(apply_plan(subject, plan, ranking, model.anatomy, out, batch=1 + index % 3))
    return found
