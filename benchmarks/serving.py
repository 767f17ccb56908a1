"""How long a plan takes over HTTP, and what it saves: against FLAP's allocation and a search of the same model.

Requests are a mix: a third for sparsities, a third for a memory budget, a third for memory and latency at once, on a
device that was measured. Their widths are rounded as the predictor's levels are. Sparsities with other roundings are
timed beside them: finer ones leave more to choose when a plan is filled up, coarser ones move the levels themselves.

Two models: the reference, and one of 32 layers and real layer sizes (LLaVA with a language model of TinyLlama's layers:
hidden 2048, FFN 5632, GQA 32/4) with random weights. The larger one's predictor is trained on a made-up landscape:
its quality means nothing, its latency is real. FLAP and one evaluation of a search are measured there on a few
sequences as long as an image and its conversation, one a batch; the published recipes use tens to thousands.
"""

import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import torch

from benchmarks.collect import EVALUATIONS
from benchmarks.flap_statistics import flap_statistics
from benchmarks.subject import MODEL_ID
from lop.workflows.training import train_model
from policy_model.training import TrainingSettings
from pruning.allocators.flap import allocate_flap
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import anatomy_of, load_config
from pruning.data.batches import AnswerSpan, Batch
from pruning.devices.timing.profiling import ProfileSettings, profile_device
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.metrics import Metrics
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO, ffn_levels, ffn_widths
from pruning.planning.ranking import Ranking
from pruning.planning.target import ffn_parameter_limits
from pruning.planning.workload import Workload
from storage.contract import Repository
from storage.records import BINARY, CalibrationRecord, DeviceRecord, ModelRecord, Sample

KindT = TypeVar("KindT", bound=StrEnum)

LARGE = "large"
NUM_LAYERS = 32
ROUND_TO = 64
NUM_SEQUENCES, SEQUENCE_TOKENS, ANSWER_TOKENS = 4, 640, 32
"""576 image tokens and a short conversation."""

NUM_MADE_UP_SAMPLES = 2000
NUM_REQUESTS = 40
NUM_ROUNDED_REQUESTS = 20
WARM_UP_REQUESTS = 6
SMALLEST_SPARSITY, LARGEST_SPARSITY = 0.1, 0.75
MOST_REMOVED = 0.78
"""Budgets lie between the costs of the dense model and of one this sparse, as sparsities between the two others."""

STARTUP_SECONDS = 60.0

RUNS = ("lop.commands.serve",)
"""What the server's process runs."""


@contextmanager
def serving(database: str) -> Iterator[str]:
    """The URL of `lop serve` over `database`, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("lop")), "serve", "--database", database, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTUP_SECONDS
        while not _ready(url):
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError("`lop serve` did not become ready")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


class Asked(StrEnum):
    """Kinds of requests, in equal shares: what a plan has to keep to."""

    SPARSITY = "sparsity"
    MEMORY = "memory"
    MEMORY_AND_LATENCY = "memory_and_latency"


@dataclass(frozen=True)
class Served:
    """A model that requests are for: how its widths are rounded, and a device that was measured with its layers."""

    model: str
    round_to: int
    device: str
    workload: Workload


@dataclass(frozen=True)
class Rounded:
    """Requests of a model for sparsities up to `largest`, of widths that are finer or coarser than its predictor's
    levels, or divided among devices."""

    model: str
    round_to: int
    tp_size: int = 1
    largest: float = LARGEST_SPARSITY
    method: str = "lop"


ROUNDED = {
    "reference_coarse": Rounded(MODEL_ID, 64, largest=0.48),  # its FFNs have 128 channels
    "32_layers_fine": Rounded(LARGE, DEFAULT_ROUND_TO),
    "32_layers_tp2": Rounded(LARGE, ROUND_TO, tp_size=2),
    "32_layers_coarse": Rounded(LARGE, 2 * ROUND_TO),
    "reference_flap": Rounded(MODEL_ID, DEFAULT_ROUND_TO, method="flap"),  # from the statistics that are stored
}
"""What is timed beside the mix, by the end of its key in the results."""


def request_milliseconds(url: str, served: Served) -> dict[Asked, list[float]]:
    """Of `NUM_REQUESTS` requests of each kind, shuffled, for plans that nobody asked for before: one client, one
    kept-alive connection.
    """
    with httpx.Client(base_url=url) as client:
        bodies = _bodies(client, served)
        spent: dict[Asked, list[float]] = {kind: [] for kind in Asked}
        for number, (kind, body) in enumerate(bodies):
            elapsed = milliseconds(client, body)
            if number >= WARM_UP_REQUESTS:
                spent[kind].append(elapsed)
    return spent


def rounded_milliseconds(url: str, rounded: Rounded) -> list[float]:
    """Of `NUM_ROUNDED_REQUESTS` requests for other sparsities each, on one kept-alive connection."""
    rng = np.random.default_rng(0)
    usual = {"model": rounded.model, "round_to": rounded.round_to, "tp_size": rounded.tp_size}
    usual["method"] = rounded.method
    with httpx.Client(base_url=url) as client:
        spent = [
            milliseconds(client, usual | {"sparsity": float(sparsity)})
            for sparsity in rng.uniform(SMALLEST_SPARSITY, rounded.largest, WARM_UP_REQUESTS + NUM_ROUNDED_REQUESTS)
        ]
    return spent[WARM_UP_REQUESTS:]


def milliseconds(client: httpx.Client, body: dict[str, Any]) -> float:
    """Until `body`, a request for a new plan, is answered."""
    started = time.perf_counter()
    response = client.post("/v1/plans", json=body)
    elapsed = (time.perf_counter() - started) * 1e3
    response.raise_for_status()
    return elapsed


def _bodies(client: httpx.Client, served: Served) -> list[tuple[Asked, dict[str, Any]]]:
    """Requests between what the dense model costs and what a quarter of its FFNs do; limits are drawn one by one."""
    usual = {"model": served.model, "round_to": served.round_to}
    workload = served.workload.model_dump()

    def costs(sparsity: float) -> dict[str, Any]:
        # A limit that everything meets: the whole workload is priced, and the widths are those of the sparsity.
        narrow = client.post("/v1/plans", json=usual | {"sparsity": sparsity, "method": "uniform"}).raise_for_status()
        most = {"disk_bytes": narrow.json()["achieved"]["disk_bytes"]} | workload
        asked = usual | {"budget": most, "device": served.device, "method": "uniform"}
        priced: dict[str, Any] = client.post("/v1/plans", json=asked).raise_for_status().json()["achieved"]
        if priced["latency_source"] != "measured":
            raise RuntimeError("the device that is asked for was measured with the model's own layers")
        return priced

    narrow, dense = costs(MOST_REMOVED), costs(0.0)
    rng = np.random.default_rng(0)

    def between(name: str) -> float:
        removed = rng.uniform(SMALLEST_SPARSITY, LARGEST_SPARSITY)
        return float(dense[name] - removed / MOST_REMOVED * (dense[name] - narrow[name]))

    found = []
    for kind in np.repeat(list(Asked), NUM_REQUESTS + WARM_UP_REQUESTS // len(Asked)):
        body: dict[str, Any] = usual | {"method": "lop"}
        if kind == Asked.SPARSITY:
            body["sparsity"] = float(rng.uniform(SMALLEST_SPARSITY, LARGEST_SPARSITY))
        else:
            body |= {"budget": {"memory_bytes": int(between("memory_bytes"))} | workload, "device": served.device}
        if kind == Asked.MEMORY_AND_LATENCY:
            body["budget"]["latency_ms"] = between("latency_ms")
        found.append((Asked(kind), body))
    if len({json.dumps(body, sort_keys=True) for _, body in found}) < len(found):
        raise RuntimeError("a request that was asked before is answered from the database")
    return [found[index] for index in rng.permutation(len(found))]


def large_model() -> Any:
    """Random weights, float32; the vision tower is small, it takes no part in what is measured."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision)).eval()


def register_large(repository: Repository, anatomy: ModelAnatomy) -> None:
    """The model of 32 layers with samples of a made-up landscape, and a predictor trained on them."""
    now = datetime.now(UTC)
    ranking = _in_order(anatomy)
    sha256 = repository.put_artifact(ranking.to_bytes(), BINARY)
    repository.add_model(ModelRecord(LARGE, anatomy, "0" * 64, sha256, "nowhere", now))
    calibration = repository.add_calibration(CalibrationRecord("1" * 64, "made up", 1, 1, now))
    levels = ffn_levels(anatomy, round_to=ROUND_TO)
    rng = np.random.default_rng(0)
    rows = {levels.units_of(levels.top)}
    for layer in range(NUM_LAYERS):
        rows |= {levels.units_of((*levels.top[:layer], k, *levels.top[layer + 1 :])) for k in range(7)}
    while len(rows) < NUM_MADE_UP_SAMPLES:
        depth = rng.uniform(0.1, 0.8)
        rows.add(levels.units_of(np.clip(rng.normal(7 * (1 - depth), 1.5, NUM_LAYERS).round(), 0, 7).astype(np.int64)))
    samples = []
    for widths in sorted(rows):
        kl = _made_up_kl(anatomy, widths)
        metrics = Metrics(kl, 1.0 + kl, math.exp(-kl), 100, 50)
        samples.append(Sample(LARGE, sha256, calibration.id, anatomy.architecture(widths), metrics, 0.1, "made up"))
    repository.add_samples(samples)
    train_model(repository, LARGE, TrainingSettings(round_to=ROUND_TO, policy_rounds=1, problems_per_round=1024))


def _in_order(anatomy: ModelAnatomy) -> Ranking:
    """Channels go from the last to the first."""
    return Ranking.from_scores(anatomy, [np.arange(layer.ffn_width, 0.0, -1.0) for layer in anatomy.layers])


def _made_up_kl(anatomy: ModelAnatomy, widths: tuple[int, ...]) -> float:
    p = [1.0 - w / x.ffn_width for w, x in zip(widths, anatomy.layers, strict=True)]
    own = [0.003 * math.exp(2.0 * math.sin(2.4 * i)) * q**2 for i, q in enumerate(p)]
    pairs = [math.sqrt(a * b) * q * r for a, b, q, r in zip(own, own[1:], p, p[1:], strict=False)]
    return (sum(own) + 3.0 * sum(pairs)) * math.exp(2.0 * sum(p) / len(p))


def measure_large_allocation() -> dict[str, float]:
    """Seconds of FLAP's allocation, and of one evaluation of a search at half of the channels, on the large model.

    A sequence is a batch: FLAP's pass computes one after another on all cores, an evaluation as many at once as there
    are cores. Of FLAP, one forward pass that measures what it needs and the allocation count, not reading the weights;
    of the evaluation, not the dense model's pass that it compares with, which a search makes once.
    """
    model = large_model()
    anatomy = anatomy_of(model)
    tokens = torch.randint(0, 32_000, (NUM_SEQUENCES, SEQUENCE_TOKENS), generator=torch.Generator().manual_seed(1))
    span = AnswerSpan(0, SEQUENCE_TOKENS - ANSWER_TOKENS, SEQUENCE_TOKENS)
    batches = [
        Batch({"input_ids": row, "attention_mask": torch.ones_like(row)}, (span,)) for row in torch.split(tokens, 1)
    ]
    limits = ffn_parameter_limits(anatomy, ffn_widths(anatomy, round_to=ROUND_TO), anatomy.ffn_parameters // 2)
    started = time.perf_counter()
    allocate_flap(anatomy, flap_statistics(model, batches), limits)
    flap = time.perf_counter() - started
    evaluator = ConfigurationEvaluator(model, batches, _in_order(anatomy), cache_bytes=0)
    started = time.perf_counter()
    evaluator.evaluate([layer.ffn_width // 2 for layer in anatomy.layers])
    return {"flap_seconds": flap, "evaluation_seconds": time.perf_counter() - started}


DEVICE_WORKLOAD = Workload(prompt_tokens=48, output_tokens=16)
"""What the tables of `measure_device` cover."""


def measure_device(repository: Repository, device_id: str, config: Any, anatomy: ModelAnatomy) -> Workload:
    """Register this machine, measured in a hurry with the layers of `config`; a workload that its tables cover."""
    settings = ProfileSettings(prompt_tokens=(32, 64), output_tokens=16, seconds=0.0, min_rounds=2)
    profile = profile_device(config, anatomy, device_id=device_id, settings=settings)
    repository.add_device(DeviceRecord(profile, datetime.now(UTC)))
    return DEVICE_WORKLOAD


def measure_serving(repository: Repository, database: str, reference: str) -> dict[str, Any]:
    """p50 of both models' requests in milliseconds, and the large model's FLAP and search beside it.

    `repository`, at the URL `database`, holds the model `reference` and its predictor; it gets the large one, and the
    machine as a device of each.
    """
    with torch.device("meta"):
        large = large_model()
        anatomy = anatomy_of(large)
    register_large(repository, anatomy)
    record = repository.get_model(reference)
    served = {
        "reference": Served(
            reference,
            8,
            "for-reference",
            measure_device(repository, "for-reference", load_config(Path(record.path)), record.anatomy),
        ),
        "32_layers": Served(
            LARGE, ROUND_TO, "for-large", measure_device(repository, "for-large", large.config, anatomy)
        ),
    }
    found: dict[str, Any] = {}
    with serving(database) as url:
        for name, model in served.items():
            found |= percentiles(name, request_milliseconds(url, model))
        for name, rounded in ROUNDED.items():
            found[f"http_p50_ms_{name}"] = float(np.median(rounded_milliseconds(url, rounded)))
    slow = measure_large_allocation()
    p50 = found["http_p50_ms_32_layers"]
    of_sparsities = found["http_p50_ms_reference_by_kind"][Asked.SPARSITY.value]
    return found | {
        "speedup_vs_flap_served": found["http_p50_ms_reference_flap"] / of_sparsities,
        "speedup_vs_flap": slow["flap_seconds"] / p50 * 1e3,
        "speedup_vs_search": slow["evaluation_seconds"] * EVALUATIONS / p50 * 1e3,
        "large_model": {**slow, "sequences": NUM_SEQUENCES, "tokens": SEQUENCE_TOKENS, "layers": NUM_LAYERS},
    }


def percentiles(name: str, spent: Mapping[KindT, Sequence[float]]) -> dict[str, Any]:
    """p50 and p95 of the mix, and the p50 of each kind."""
    mix = np.concatenate([*spent.values()])
    return {
        f"http_p50_ms_{name}": float(np.median(mix)),
        f"http_p95_ms_{name}": float(np.quantile(mix, 0.95)),
        f"http_p50_ms_{name}_by_kind": {kind.value: float(np.median(times)) for kind, times in spent.items()},
    }


if __name__ == "__main__":
    print(json.dumps(measure_large_allocation()))  # noqa: T201
