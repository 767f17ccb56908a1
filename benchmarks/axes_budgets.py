"""Does any plan exceed what was asked for, in the spaces that plans are asked in? By the costs of models really built.

Random sparsities and budgets over the spaces ffn, attention, layers and all: memory, operations, weight files and time,
alone and together; time by the roofline of a device of the catalogue, or by tables of this machine, which is measured
for it. Each is answered with the choice that random worths lead to, every plan's model is built on the meta device from
the config that `lop apply` would write, and counted without the planner's arithmetic (`truth_checks`).

`python -m benchmarks.axes_budgets` prints what it finds, and takes an hour on two cores. Every hundred plans are kept
under benchmarks/.work/axes/budgets as soon as they are checked, and the profile of the machine: killed and run again by
the same code it goes on from there.
"""

import hashlib
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.measured_code import AT_START
from benchmarks.steps import Steps
from benchmarks.subject import REFERENCE
from benchmarks.truth_checks import LIMITS, Checked, check_plan
from benchmarks.truth_joint import random_budget, random_workload
from lop.console.console import bar
from lop.workflows.compute import compute_device
from lop.workflows.profiling import TimedModel
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import load_config, read_anatomy
from pruning.devices.catalogue import DEVICES
from pruning.devices.device import Device, profiled_device
from pruning.devices.latency import latency_model
from pruning.devices.profile import DeviceProfile, parse_profile
from pruning.devices.timing.profiling import ProfileSettings, profile_device
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName, fine_space
from pruning.planning.budget import limits_for_budget
from pruning.planning.cost import achieved_costs
from pruning.planning.latency_model import LatencyModel
from pruning.planning.limits import Limits
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.prices import memory_bytes
from pruning.planning.scope import Scope
from pruning.planning.target import achieved_sparsity, limits_for_sparsity
from pruning.planning.workload import Workload
from service.schemas import PlanRequest

WORK = Path(__file__).parent / ".work" / "axes" / "budgets"
NUM_BUDGETS = 10_000
CHUNK = 100
MODEL, MACHINE = "model", "this-machine"
SETTINGS = ProfileSettings(prompt_tokens=(32, 64, 128), output_tokens=64, seconds=5.0)
ROUNDINGS = (1, 8, 8, 16, 64)

SPARSITIES, ON_MACHINE, ON_CATALOGUE = 0.2, 0.4, 0.4
"""Of all requests those that are a sparsity; of the others those on this machine, and on a device of the catalogue."""


@dataclass(frozen=True)
class AskedPlan:
    """A plan for a random request."""

    request: PlanRequest
    plan: PruningPlan


class BudgetMaker:
    """Random requests that can be met, in the spaces in turn, and a plan for each. Deterministic for a seed.

    `machine` is a device that was measured with the layers of the model.
    """

    def __init__(self, anatomy: ModelAnatomy, machine: Device, seed: int) -> None:
        self._anatomy, self._machine = anatomy, machine
        self._random, self._made = random.Random(seed), 0

    def make(self) -> AskedPlan:
        """In the next space."""
        draw, names = self._random, list(SPACES_OF_UNITS)
        name = names[self._made % len(names)]
        self._made += 1
        fields: dict[str, Any] = {"model": MODEL, "space": name, "round_to": draw.choice(ROUNDINGS)}
        return self._sparsity(fields) if draw.random() < SPARSITIES else self._budget(fields)

    def _sparsity(self, fields: dict[str, Any]) -> AskedPlan:
        space = fine_space(self._anatomy, fields["space"], round_to=fields["round_to"])
        is_ffn = fields["space"] is SpaceName.FFN
        scope = self._random.choice([Scope.DECODER, Scope.MODEL, *([Scope.FFN] if is_ffn else [])])
        removable = achieved_sparsity(self._anatomy, space.architecture(space.bottom))[scope]
        # Less what rounding could take.
        sparsity = self._random.uniform(0.0, max(removable - 1e-6, 0.0))
        limits = limits_for_sparsity(self._anatomy, space, sparsity, scope)
        return self._answered(PlanRequest(**fields, scope=scope, sparsity=sparsity), limits, Workload(), None)

    def _budget(self, fields: dict[str, Any]) -> AskedPlan:
        draw = self._random
        device, workload = self._device_and_workload()
        latency = None if device is None else latency_model(device, self._anatomy, workload)
        names = draw.sample(LIMITS[:1] + LIMITS[2:], draw.randint(0 if latency else 1, len(LIMITS) - 1))
        names += ["latency_ms"] * (latency is not None)
        space = fine_space(self._anatomy, fields["space"], round_to=fields["round_to"])
        limits_for = partial(limits_for_budget, self._anatomy, space, latency=latency)
        budget = random_budget(limits_for, names, workload, draw)
        request = PlanRequest(**fields, budget=budget, device=None if device is None else device.id)
        return self._answered(request, limits_for(budget), workload, latency)

    def _device_and_workload(self) -> tuple[Device | None, Workload]:
        draw, kind = self._random, self._random.random()
        device = None
        if kind < ON_MACHINE + ON_CATALOGUE:
            device = self._machine if kind < ON_MACHINE else draw.choice(list(DEVICES.values()))
        workload = random_workload(device, draw)
        if device is not None and memory_bytes(self._anatomy, workload).total > device.memory_bytes:
            device = None  # its memory would be a limit, too
        return device, workload

    def _answered(
        self, request: PlanRequest, limits: Limits, workload: Workload, latency: LatencyModel | None
    ) -> AskedPlan:
        """With the choice that random worths lead to."""
        space, rng = limits.space, np.random.default_rng(self._random.getrandbits(63))
        worth = rng.normal(size=(space.num_decisions, int(space.counts.max())))
        architecture = space.architecture(limits.fit(rng.integers(space.counts), worth))
        target = PlanTarget(
            sparsity=request.sparsity, scope=request.scope, budget=request.budget, device=request.device
        )
        plan = make_plan(
            self._anatomy,
            architecture,
            model_id=MODEL,
            target=target,
            ranking=PlanRanking(sha256="0" * 64),
            method="random",
            achieved=achieved_costs(self._anatomy, architecture, workload, latency=latency),
        )
        return AskedPlan(request, plan)


def axes_budgets(
    checkpoint: Path = REFERENCE / "model",
    *,
    num_budgets: int = NUM_BUDGETS,
    profile: DeviceProfile | None = None,
    seed: int = 0,
    processes: int = 2,
    work: Path = WORK,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Check a plan for each of `num_budgets` random requests for the model in `checkpoint`, of which config and headers
    are read. `profile` is of this machine and those layers, by default measured now; finished chunks are kept in
    `work`.

    Returns:
        `exceeded` of the `budgets` are exceeded, `budget_cost_errors` plans say something of their costs that is not
        so; the first of both in `budgets_broken`. Times were `budgets_by_tables` or `budgets_by_roofline`. `rows` are
        by space and what was asked. `budgets_minutes` are of all attempts, as if all processes had been busy.
    """
    steps = Steps(work)
    code = sorted(AT_START.digests(AT_START.reached([__name__])).items())
    key = [str(checkpoint), hashlib.sha256(json.dumps(code).encode()).hexdigest()]
    if profile is None:
        measured = steps.call("profile", key, lambda: measured_profile(checkpoint).model_dump(mode="json"))
        profile = parse_profile(json.dumps(measured.document))
    document = profile.model_dump_json()
    chunks = [(min(CHUNK, num_budgets - start), f"axes {seed}:{start}") for start in range(0, num_budgets, CHUNK)]
    key += [document]
    kept = {chunk: steps.kept(_name(chunk), key) for chunk in chunks}
    found: list[tuple[SpaceName, Checked]] = []
    seconds = 0.0
    # Processes that are forked may hold locks of torch's threads.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {
            chunk: pool.submit(_check_chunk, checkpoint, document, *chunk) for chunk, step in kept.items() if not step
        }
        try:
            for chunk, step in kept.items():
                done = step or steps.call(_name(chunk), key, running[chunk].result)
                found += [(SpaceName(space), _checked(of)) for space, of in done.document["checked"]]
                seconds += done.document["seconds"]
                if on_progress is not None:
                    on_progress(len(found), num_budgets)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else the pool would end all chunks first
            raise
    timed = [x for _, x in found if "latency_ms" in x.asked]
    broken = [(space, x) for space, x in found if x.exceeded + x.differing]
    kinds = sorted({(space, x.asked) for space, x in found})
    return {
        "budgets": len(found),
        "exceeded": sum(bool(x.exceeded) for _, x in found),
        "budget_cost_errors": sum(bool(x.differing) for _, x in found),
        "budgets_by_tables": sum(x.is_measured for x in timed),
        "budgets_by_roofline": sum(not x.is_measured for x in timed),
        "budgets_broken": [f"{space} {x.asked} {x.device}: {x.exceeded + x.differing}" for space, x in broken[:9]],
        "budgets_minutes": seconds / processes / 60,
        "rows": [_row(*kind, [x for space, x in found if (space, x.asked) == kind]) for kind in kinds],
    }


def _name(chunk: tuple[int, str]) -> str:
    count, seed = chunk
    return f"{count} of {seed}"


def _checked(document: Mapping[str, Any]) -> Checked:
    """As it was before it was kept: JSON has lists for tuples."""
    tuples = {name: tuple(document[name]) for name in ("exceeded", "differing")}
    return Checked(**{**document, **tuples})


def _row(space: SpaceName, asked: str, checked: Sequence[Checked]) -> dict[str, Any]:
    return {
        "space": space.value,
        "asked": asked,
        "budgets": len(checked),
        "exceeded": sum(bool(x.exceeded) for x in checked),
        "cost_errors": sum(bool(x.differing) for x in checked),
    }


def _check_chunk(checkpoint: Path, profile: str, count: int, seed: str) -> dict[str, Any]:
    """Check `count` plans, in a process of its own: a JSON document."""
    import torch
    from transformers.utils import logging

    started = time.perf_counter()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    anatomy, machine = read_anatomy(checkpoint), profiled_device(parse_profile(profile))
    maker = BudgetMaker(anatomy, machine, random.Random(seed).getrandbits(63))
    devices, found = DEVICES | {machine.id: machine}, []
    with TemporaryDirectory() as folder:
        for _ in range(count):
            made = maker.make()
            checked = check_plan(made.request, made.plan, anatomy, checkpoint, Path(folder), devices=devices)
            found.append((made.request.space.value, asdict(checked)))
    return {"checked": found, "seconds": time.perf_counter() - started}


def measured_profile(checkpoint: Path) -> DeviceProfile:
    model = TimedModel.of_folder(checkpoint)
    return profile_device(
        load_config(checkpoint),
        model.anatomy,
        device_id=MACHINE,
        settings=SETTINGS,
        images=model.images(SETTINGS.batch),
        device=compute_device(),
    )


def main(
    budgets: Annotated[int, typer.Option(min=1, help="Plans to check.")] = NUM_BUDGETS,
    seed: Annotated[int, typer.Option(min=0, help="Of the requests.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="That check at once.")] = 2,
) -> None:
    """Print what was found, as JSON."""
    with bar("budgets") as on_progress:
        found = axes_budgets(num_budgets=budgets, seed=seed, processes=processes, on_progress=on_progress)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
