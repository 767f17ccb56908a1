"""How long a new plan takes over HTTP where FFN widths, KV groups and skips are planned at once.

The model is that of `benchmarks.serving`: 32 layers of real sizes (hidden 2048, FFN 5632, GQA 32/4), so 64 decisions
of five or nine options. Its predictor is trained on a made-up landscape in which neighbours and skips interact: its
quality means nothing, its latency is real. Requests are for a sparsity of the decoder, for memory, for memory and
operations at once, and for memory and time at once on this machine, a quarter each, every one for a plan that nobody
asked for before.

`python -m benchmarks.axes_http` prints the part's figures; a training that is interrupted goes on where it was.
"""

import hashlib
import json
import math
import time
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import torch
import typer

from benchmarks.measured_code import AT_START
from benchmarks.serving import (
    DEVICE_WORKLOAD,
    LARGE,
    NUM_LAYERS,
    RUNS,
    WARM_UP_REQUESTS,
    large_model,
    measure_device,
    milliseconds,
    percentiles,
    serving,
)
from lop.workflows.training import train_model
from policy_model.training import TrainingSettings
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.arrays import IntArray
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.measuring.metrics import Metrics
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.ranking import Ranking
from pruning.planning.space import Choice, Space
from service.plan_forms import PlanForm
from storage.contract import Repository
from storage.records import BINARY, CalibrationRecord, ModelRecord, Sample
from storage.sql_repository import open_repository

__all__ = ["RUNS", "http_joint"]

WORK = Path(__file__).parent / ".work" / "axes" / "http"
ROUND_TO = 64
NUM_MADE_UP_SAMPLES = 1000
"""A scan of 150 evaluations and four searches of 200 are as many."""

NUM_REQUESTS = 40
SMALLEST_SPARSITY, LARGEST_SPARSITY = 0.1, 0.6
AT_MOST_MS = 40.0


class Asked(StrEnum):
    """Kinds of requests, in equal shares: what a plan has to keep to."""

    SPARSITY = "sparsity"
    MEMORY = "memory"
    MEMORY_AND_FLOPS = "memory_and_flops"
    MEMORY_AND_LATENCY = "memory_and_latency"


LIMITED = {
    Asked.MEMORY: ("memory_bytes",),
    Asked.MEMORY_AND_FLOPS: ("memory_bytes", "flops"),
    Asked.MEMORY_AND_LATENCY: ("memory_bytes", "latency_ms"),
}
DEVICE = "this-machine"


def http_joint(
    folder: Path = WORK, *, num_samples: int = NUM_MADE_UP_SAMPLES, num_requests: int = NUM_REQUESTS
) -> dict[str, Any]:
    """`http_p50_ms_joint_32_layers` of `num_requests` requests of each kind, its p95 and the p50 of each kind.

    The predictor is trained in `folder` if it is not there yet, by this very code. Requests are of one client on one
    kept-alive connection. This machine is measured as a device in a hurry: it has prices, nothing is compared by them.
    """
    own = folder / _key(num_samples)
    own.mkdir(parents=True, exist_ok=True)
    database = f"sqlite:///{own / 'lop.db'}"
    with open_repository(database, create=True) as repository:
        found = _ready(repository, own / "training", num_samples)
    with serving(database) as url:
        # Plans of a run before are in the database: other budgets than theirs are asked for.
        spent = request_milliseconds(url, LARGE, num_requests, seed=time.time_ns())
    return found | percentiles("joint_32_layers", spent)


def _key(num_samples: int) -> str:
    """Names what is trained: the samples, and the code that makes and learns from them."""
    code = sorted(AT_START.digests(AT_START.reached(["benchmarks.axes_http"])).items())
    return hashlib.sha256(json.dumps([num_samples, code]).encode()).hexdigest()[:12]


def _ready(repository: Repository, resume_folder: Path, num_samples: int) -> dict[str, Any]:
    """Registers and trains what is not yet; the predictor's size."""
    if not any(model.id == LARGE for model in repository.list_models()):
        with torch.device("meta"):
            anatomy = anatomy_of(large_model())
        register_joint(repository, anatomy, num_samples)
    if DEVICE not in repository.list_device_ids():
        with torch.device("meta"):
            model = large_model()
        measure_device(repository, DEVICE, model.config, anatomy_of(model))
    record = repository.latest_predictor(LARGE)
    if record is None:
        settings = TrainingSettings(round_to=ROUND_TO, axes=SpaceName.ALL, policy_rounds=1, problems_per_round=1024)
        record = train_model(repository, LARGE, settings, resume_folder=resume_folder)
    info = record.config["info"]
    return {"http_joint_samples": info["num_samples"], "http_joint_layers": NUM_LAYERS}


def register_joint(repository: Repository, anatomy: ModelAnatomy, num_samples: int) -> None:
    """The model with `num_samples` samples of a made-up landscape in the joint space."""
    now = datetime.now(UTC)
    ranking = Ranking.from_scores(
        anatomy,
        [np.arange(layer.ffn_width, 0.0, -1.0) for layer in anatomy.layers],
        group_scores=[np.arange(layer.num_kv_groups, 0.0, -1.0) for layer in anatomy.layers],
    )
    sha256 = repository.put_artifact(ranking.to_bytes(), BINARY)
    repository.add_model(ModelRecord(LARGE, anatomy, "0" * 64, sha256, "nowhere", now))
    calibration = repository.add_calibration(CalibrationRecord("1" * 64, "made up", 1, 1, now))
    space = coarse_space(anatomy, SpaceName.ALL, round_to=ROUND_TO)
    samples = []
    for choice in made_up_choices(space, num_samples):
        kl = made_up_kl(space, choice)
        metrics = Metrics(kl, 1.0 + kl, math.exp(-kl), 100, 50)
        samples.append(Sample(LARGE, sha256, calibration.id, space.architecture(choice), metrics, 0.1, "made up"))
    repository.add_samples(samples)


def made_up_choices(space: Space, count: int) -> list[Choice]:
    """The dense model, a scan of each decision's middle and least option, and random choices of any depth."""
    rng = np.random.default_rng(0)
    top = np.array(space.top)
    rows = {space.top}
    for n in range(space.num_decisions):
        for k in (0, int(top[n]) // 2):
            rows.add((*space.top[:n], k, *space.top[n + 1 :]))
    while len(rows) < count:
        kept = top * (1.0 - rng.uniform(0.05, 0.7))
        drawn: IntArray = np.rint(rng.normal(kept, 0.2 * top)).astype(np.int64)
        rows.add(tuple(np.clip(drawn, 0, top).tolist()))
    return sorted(rows)


def made_up_kl(space: Space, choice: Choice) -> float:
    """Every decision loses by itself, more so if it is skipped; neighbours, and halves of one layer, lose together."""
    gone = [1.0 - kept / dense for kept, dense in zip(space.units_of(choice), space.dense_units.tolist(), strict=True)]
    sites = [decision.sites[0] for decision in space.decisions]
    own = [_own_kl(site, part) for site, part in zip(sites, gone, strict=True)]
    pairs = [math.sqrt(a * b) for a, b in pairwise(own)]
    return float((sum(own) + 0.6 * sum(pairs)) * math.exp(2.0 * sum(gone) / len(gone)))


def _own_kl(site: Site, part: float) -> float:
    if site.sublayer is Sublayer.ATTENTION:
        return 0.002 * math.exp(1.5 * math.cos(1.9 * site.layer)) * math.pow(part, 1.5) * (2.0 if part == 1.0 else 1.0)
    return 0.003 * math.exp(2.0 * math.sin(2.4 * site.layer)) * part * part * (1.5 if part == 1.0 else 1.0)


def request_milliseconds(url: str, model: str, num_requests: int, *, seed: int) -> dict[Asked, list[float]]:
    """Of `num_requests` requests of each kind, shuffled, for new plans of `model`."""
    spent: dict[Asked, list[float]] = {kind: [] for kind in Asked}
    # Of schema 2, as `lop.Client` asks for.
    with httpx.Client(base_url=url, timeout=60.0, headers={"Accept": PlanForm.SCHEMA_2.value}) as client:
        warm_up = joint_bodies(client, model, -(-WARM_UP_REQUESTS // len(Asked)), seed=seed + 1)
        bodies = joint_bodies(client, model, num_requests, seed=seed)
        for _, body in warm_up:
            milliseconds(client, body)
        for kind, body in bodies:
            spent[kind].append(milliseconds(client, body))
    return spent


def joint_bodies(client: httpx.Client, model: str, of_each: int, *, seed: int) -> list[tuple[Asked, dict[str, Any]]]:
    """`of_each` requests of each kind, shuffled: between what a tenth and what six tenths of the decoder removed cost.

    Several limits of one request are drawn one by one.
    """
    usual = {"model": model, "round_to": ROUND_TO, "space": SpaceName.ALL.value}
    timed = {"device": DEVICE, "method": "uniform"}
    workload = DEVICE_WORKLOAD.model_dump()

    def achieved(sparsity: float) -> dict[str, Any]:
        at = client.post("/v1/plans", json=usual | {"sparsity": sparsity, "method": "uniform"}).raise_for_status()
        # The time of what needs no more room than that.
        most = {"disk_bytes": at.json()["achieved"]["disk_bytes"]} | workload
        found: dict[str, Any] = (
            client.post("/v1/plans", json=usual | timed | {"budget": most}).raise_for_status().json()
        )
        if found["achieved"]["latency_source"] != "measured":
            raise RuntimeError(f"{DEVICE} was measured with the layers of {model}")
        return dict(found["achieved"])

    wide, narrow = achieved(SMALLEST_SPARSITY), achieved(LARGEST_SPARSITY)
    rng = np.random.default_rng(seed)
    found = []
    for kind in np.repeat(list(Asked), of_each):
        body: dict[str, Any] = usual | {"method": "lop"}
        if kind == Asked.SPARSITY:
            body["sparsity"] = float(rng.uniform(SMALLEST_SPARSITY, LARGEST_SPARSITY))
        else:
            names = LIMITED[Asked(kind)]
            drawn = {name: rng.uniform(narrow[name], wide[name]) for name in names}
            limits = {name: float(x) if name == "latency_ms" else int(x) for name, x in drawn.items()}
            body |= {"budget": limits | workload}
        if kind == Asked.MEMORY_AND_LATENCY:
            body["device"] = DEVICE
        found.append((Asked(kind), body))
    return [found[index] for index in rng.permutation(len(found))]


def main(
    folder: Annotated[Path, typer.Option(help="Where the database and the training's state are kept.")] = WORK,
    samples: Annotated[int, typer.Option(min=200, help="Of the made-up landscape.")] = NUM_MADE_UP_SAMPLES,
    requests: Annotated[int, typer.Option(min=1, help="Of each kind.")] = NUM_REQUESTS,
) -> None:
    """Print the part's figures as JSON."""
    print(json.dumps(http_joint(folder, num_samples=samples, num_requests=requests), indent=1))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
