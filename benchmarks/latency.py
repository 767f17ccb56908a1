"""Predicted against measured latency: a LLaVA-shaped model of real layer sizes, profiled, then cut and run.

The profile comes from one ladder model; each plan is a real cut of the dense model, and gets real requests: a picture
and a prompt in, then tokens one by one on a cache that grows. No length that is timed was profiled: widths, prompts and
caches are all interpolated. In the end the device is profiled once more: how far the two profiles' predictions of the
same plans lie apart is how much the machine itself changed meanwhile, and no prediction can be better than that.
`python -m benchmarks.latency` takes about nine minutes on two cores and writes `results/latency.json`.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.machine import write_results
from pruning.allocators.allocation import architecture_near
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.arrays import FloatArray
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.cutting.surgery import cut_model
from pruning.devices.device import profiled_device
from pruning.devices.latency import latency_model
from pruning.devices.profile import DeviceProfile
from pruning.devices.timing.ladder import random_weights
from pruning.devices.timing.profiling import ProfileSettings, profile_device
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.latency_model import LatencyModel, LatencySource, decode_steps
from pruning.planning.prices import LatencyPrice
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.target import achieved_sparsity, ffn_parameter_limits
from pruning.planning.workload import Workload

if TYPE_CHECKING:
    from transformers import LlavaConfig, PreTrainedModel

PLANS = 12
LARGEST_SPARSITY = 0.7
ROUND_TO = 8

PROFILED = ProfileSettings(prompt_tokens=(128, 256, 512), output_tokens=64, seconds=60.0)
TIMED = (Workload(prompt_tokens=224, output_tokens=8), Workload(prompt_tokens=384, output_tokens=24))
"""Lengths between those of the profile."""


@dataclass(frozen=True)
class Sizes:
    """Of the model and of its requests: a language model of TinyLlama's layers, a small vision tower.

    Attributes:
        profiled: what the profile measures.
        timed: the requests whose times are predicted and measured, each of at least two tokens.
        requests: of each kind and visit; one more warms up.
    """

    hidden: int = 2048
    ffn: int = 5632
    layers: int = 8
    heads: int = 32
    kv_groups: int = 4
    vocabulary: int = 32000
    vision_hidden: int = 512
    vision_layers: int = 6
    image_px: int = 224
    patch_px: int = 16
    profiled: ProfileSettings = PROFILED
    timed: tuple[Workload, ...] = TIMED
    requests: int = 2

    @property
    def image_tokens(self) -> int:
        return (self.image_px // self.patch_px) ** 2


@dataclass(frozen=True)
class RequestTimes:
    """Milliseconds of every request of a workload [R]: its prefill, and its mean decode step."""

    prefill_ms: tuple[float, ...]
    decode_ms: tuple[float, ...]


def measure(
    sizes: Sizes | None = None, *, on_step: Callable[[int, int], None] | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row a plan and workload, and the summary: `latency_mape` is the mean absolute error of predicted prefill and
    decode times, as a fraction of the measured ones; `profile_repeat_mape` the same of the predictions, as a fraction
    of those of a second profile, taken when all was measured. `on_step(done, total)` is told of progress, plan by plan.
    """
    sizes = sizes or Sizes()
    config = _config(sizes)
    dense = _random_model(config)
    anatomy = anatomy_of(dense)
    started = time.perf_counter()
    profile, models = _profiled(sizes, config, anatomy)
    profile_seconds = time.perf_counter() - started
    cut = plans(anatomy)
    architectures = [anatomy.architecture(widths) for widths in cut]
    inputs = [_inputs(sizes, config, x) for x in sizes.timed]
    measured = run_architectures(dense, architectures, inputs, sizes.timed, sizes.requests, on_step)
    rows = [
        _row(number, anatomy, widths, model, times)
        for number, (widths, of_plan) in enumerate(zip(cut, measured, strict=True))
        for model, times in zip(models, of_plan, strict=True)
    ]
    again = _profiled(sizes, config, anatomy)[1]
    return rows, summary_of(rows) | {
        "profile_repeat_mape": _apart(anatomy, architectures, models, again),
        "profile_smoothing": profile.layers[0].smoothing,
        "profile_drift": profile.layers[0].drift,
        "profile_seconds": profile_seconds,
    }


def _profiled(sizes: Sizes, config: "LlavaConfig", anatomy: ModelAnatomy) -> tuple[DeviceProfile, list[LatencyModel]]:
    """A profile of this machine, and what it makes of each of the timed workloads [W]."""
    images = _inputs(sizes, config, sizes.timed[0])
    profile = profile_device(config, anatomy, device_id="this-machine", settings=sizes.profiled, images=images)
    device = profiled_device(profile)
    models = [latency_model(device, anatomy, workload) for workload in sizes.timed]
    for model in models:
        assert model.source is LatencySource.MEASURED, model.description
    return profile, models


def _apart(
    anatomy: ModelAnatomy,
    architectures: Sequence[Architecture],
    models: Sequence[LatencyModel],
    again: Sequence[LatencyModel],
) -> float:
    """How far the predictions of `models` [W] are from those of `again` [W], as fractions of the latter: the mean over
    prefills and decode steps of all `architectures`.
    """
    found = []
    for both in zip(models, again, strict=True):
        prices = [LatencyPrice(anatomy, x) for x in both]
        for architecture in architectures:
            first, second = (x.latency(architecture) for x in prices)
            assert first is not None
            assert second is not None
            found.append(abs(first.prefill_ms / second.prefill_ms - 1))
            found.append(abs(first.decode_ms_per_token / second.decode_ms_per_token - 1))
    return mean(found)


def run_architectures(
    dense: "PreTrainedModel",
    architectures: Sequence[Architecture],
    inputs: Sequence[dict[str, torch.Tensor]],
    workloads: Sequence[Workload],
    requests: int,
    on_step: Callable[[int, int], None] | None = None,
) -> list[list[RequestTimes]]:
    """[A][W] the requests of `dense` cut down to each of the `architectures` [A], of each of `workloads` [W], whose
    `inputs` [W] are given; `requests` of each kind and visit, and one more that warms up.

    Every model is visited twice, there and back: what slows the machine down for a while slows down one visit, and a
    drift of its clock weighs on all alike.
    """
    anatomy = anatomy_of(dense)
    in_order = [[-np.arange(x.units(sublayer), dtype=np.float64) for x in anatomy.layers] for sublayer in Sublayer]
    by_sublayer = dict(zip(Sublayer, in_order, strict=True))
    identity = Ranking.from_scores(anatomy, by_sublayer[Sublayer.FFN], group_scores=by_sublayer[Sublayer.ATTENTION])
    visits: list[list[list[RequestTimes]]] = [[] for _ in architectures]
    order = [*range(len(architectures)), *reversed(range(len(architectures)))]
    for done, number in enumerate(order):
        model = copy.deepcopy(dense)
        cut_model(model, architectures[number], identity)
        model.to(_device())
        visits[number].append(
            [run_requests(model, x, workload, requests) for x, workload in zip(inputs, workloads, strict=True)]
        )
        del model
        if on_step is not None:
            on_step(done + 1, len(order))
    return [
        [
            RequestTimes(there.prefill_ms + back.prefill_ms, there.decode_ms + back.decode_ms)
            for there, back in zip(*both, strict=True)
        ]
        for both in visits
    ]


def _row(
    number: int, anatomy: ModelAnatomy, widths: list[int], model: LatencyModel, measured: RequestTimes
) -> dict[str, Any]:
    architecture = anatomy.architecture(widths)
    return {
        "plan": number,
        "sparsity": achieved_sparsity(anatomy, architecture)[Scope.FFN],
        "widths": widths,
        **compared(LatencyPrice(anatomy, model), architecture, model.workload, measured),
    }


def compared(
    price: LatencyPrice, architecture: Architecture, workload: Workload, measured: RequestTimes
) -> dict[str, Any]:
    """What `price` says of `workload` beside what was measured: medians of all requests, as the profile has them."""
    expected = price.latency(architecture)
    assert expected is not None
    prefill_ms, decode_ms = median(measured.prefill_ms), median(measured.decode_ms)
    return {
        "prompt_tokens": workload.prompt_tokens,
        "output_tokens": workload.output_tokens,
        "predicted_prefill_ms": expected.prefill_ms,
        "measured_prefill_ms": prefill_ms,
        "prefill_error": expected.prefill_ms / prefill_ms - 1,
        "predicted_decode_ms": expected.decode_ms_per_token,
        "measured_decode_ms": decode_ms,
        "decode_error": expected.decode_ms_per_token / decode_ms - 1,
    }


def plans(anatomy: ModelAnatomy) -> list[list[int]]:
    """`PLANS` lists of widths [L], each layer another one, of sparsities from 0 to `LARGEST_SPARSITY`."""
    rng = np.random.default_rng(0)
    space = ffn_widths(anatomy, round_to=ROUND_TO)
    dense = np.array([x.ffn_width for x in anatomy.layers])
    found = []
    for sparsity in np.linspace(0.0, LARGEST_SPARSITY, PLANS):
        limits = ffn_parameter_limits(anatomy, space, int(anatomy.ffn_parameters * (1 - sparsity)))
        wished = dense * _shares(rng.uniform(0.2, 1.0, len(dense)), 1 - sparsity)
        found.append(list(anatomy.ffn_widths(architecture_near(limits, wished.tolist()))))
    return found


def _shares(drawn: FloatArray, kept: float) -> FloatArray:
    """`drawn` [L], times the factor with which, cut at 1, they are `kept` on average."""
    low, high = 0.0, 1.0 / float(drawn.min())
    for _ in range(60):
        factor = (low + high) / 2
        low, high = (factor, high) if np.minimum(drawn * factor, 1.0).mean() < kept else (low, factor)
    shares: FloatArray = np.minimum(drawn * high, 1.0)
    return shares


@torch.inference_mode()
def run_requests(
    model: "PreTrainedModel", inputs: dict[str, torch.Tensor], workload: Workload, requests: int
) -> RequestTimes:
    """`requests` times a prompt of `inputs`, answered as `workload` says; a first one warms up."""
    device = model.device
    inputs = {name: value.to(device) for name, value in inputs.items()}
    prefills, steps = [], []
    for _ in range(requests + 1):
        start = _now(device)
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
        first = _now(device)
        for _ in range(decode_steps(workload)):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        prefills.append(1e3 * (first - start))
        steps.append(1e3 * (_now(device) - first) / decode_steps(workload))
    return RequestTimes(tuple(prefills[1:]), tuple(steps[1:]))


def summary_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean absolute errors, and the worst one, as fractions of what was measured."""
    prefill = mean(abs(row["prefill_error"]) for row in rows)
    decode = mean(abs(row["decode_error"]) for row in rows)
    return {
        "latency_mape": (prefill + decode) / 2,
        "prefill_mape": prefill,
        "decode_mape": decode,
        "worst_error": max(max(abs(row["prefill_error"]), abs(row["decode_error"])) for row in rows),
    }


def _config(sizes: Sizes) -> "LlavaConfig":
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_groups,
        vocab_size=sizes.vocabulary,
    )
    vision = CLIPVisionConfig(
        hidden_size=sizes.vision_hidden,
        intermediate_size=4 * sizes.vision_hidden,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=max(sizes.vision_hidden // 64, 1),
        image_size=sizes.image_px,
        patch_size=sizes.patch_px,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, image_seq_length=sizes.image_tokens)


def _random_model(config: "LlavaConfig") -> "PreTrainedModel":
    """The dense model, in memory but not on the accelerator."""
    from transformers import LlavaForConditionalGeneration

    return random_weights(LlavaForConditionalGeneration, copy.deepcopy(config), torch.float32, torch.device("cpu"))


def _inputs(sizes: Sizes, config: "LlavaConfig", workload: Workload) -> dict[str, torch.Tensor]:
    """One prompt of the workload's length, its picture's tokens first."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(10, sizes.vocabulary, (1, workload.prompt_tokens - sizes.image_tokens), generator=generator)
    image = torch.full((1, sizes.image_tokens), config.image_token_id)
    pixels = torch.randn(1, 3, sizes.image_px, sizes.image_px, generator=generator)
    return {"input_ids": torch.cat([image, text], dim=1), "pixel_values": pixels}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _say(figures: dict[str, Any]) -> None:
    text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, int | float))
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    found, summary = measure(on_step=lambda done, total: _say({"run": done, "of": total}))
    write_results("latency", summary, found)
    for figures in (*found, summary):
        _say(figures)
