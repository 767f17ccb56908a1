"""Predicted against measured latency: a LLaVA-shaped model of real layer sizes, profiled, then cut and run.

The profile comes from one ladder model; each plan is a real cut of the dense model, and a real request: a picture and a
prompt in, then tokens one by one on a cache that grows. `python -m benchmarks.latency` takes about five minutes on two
cores and writes `results/latency.json`.
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
from pruning.anatomy import ModelAnatomy
from pruning.anatomy_reader import anatomy_of
from pruning.arrays import FloatArray
from pruning.devices.device import profiled_device
from pruning.devices.ladder import random_weights
from pruning.devices.profiling import ProfileSettings, profile_device
from pruning.latency import Latency, LatencySource, latency_model
from pruning.limits import WidthSteps, parameter_limits
from pruning.plan import Workload
from pruning.ranking import Ranking
from pruning.surgery import cut_model
from pruning.target import Scope, achieved_sparsity

if TYPE_CHECKING:
    from transformers import LlavaConfig, PreTrainedModel

PLANS = 12
LARGEST_SPARSITY = 0.7
ROUND_TO = 8


@dataclass(frozen=True)
class Sizes:
    """Of the model and of its requests: a language model of TinyLlama's layers, a small vision tower."""

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
    prompt_tokens: int = 256
    output_tokens: int = 16
    profile_seconds: float = 60.0
    requests: int = 2

    @property
    def image_tokens(self) -> int:
        return (self.image_px // self.patch_px) ** 2

    @property
    def workload(self) -> Workload:
        return Workload(prompt_tokens=self.prompt_tokens, output_tokens=self.output_tokens)


def measure(
    sizes: Sizes | None = None, *, on_step: Callable[[int, int], None] | None = None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row a plan, and the summary: `latency_mape` is the mean absolute error of predicted prefill and decode times,
    as a fraction of the measured ones. `on_step(done, total)` is told of progress, plan by plan.
    """
    sizes = sizes or Sizes()
    config = _config(sizes)
    dense = _random_model(config)
    anatomy = anatomy_of(dense)
    inputs = _inputs(sizes, config)
    settings = ProfileSettings(
        prompt_tokens=(sizes.prompt_tokens,), output_tokens=sizes.output_tokens, seconds=sizes.profile_seconds
    )
    started = time.perf_counter()
    profile = profile_device(config, anatomy, device_id="this-machine", settings=settings, images=inputs)
    profile_seconds = time.perf_counter() - started
    predicted = latency_model(profiled_device(profile), anatomy, sizes.workload)
    assert predicted.source is LatencySource.MEASURED, predicted.description
    cut = plans(anatomy)
    measured = _run_plans(dense, cut, inputs, sizes, on_step)
    rows = [
        _row(number, anatomy, widths, predicted.latency(widths), times)
        for number, (widths, times) in enumerate(zip(cut, measured, strict=True))
    ]
    return rows, _summary(rows, profile.layers[0].smoothing, profile_seconds)


def _run_plans(
    dense: "PreTrainedModel",
    cut: Sequence[list[int]],
    inputs: dict[str, torch.Tensor],
    sizes: Sizes,
    on_step: Callable[[int, int], None] | None,
) -> list[tuple[float, float]]:
    """Prefill and decode step of each plan, in milliseconds: of its quicker visit.

    Whatever else the machine does only adds to a time, and lasts. So every plan is visited twice, there and back.
    """
    anatomy = anatomy_of(dense)
    identity = Ranking.from_scores(anatomy, [-np.arange(x.ffn_width, dtype=np.float64) for x in anatomy.layers])
    times: dict[int, list[tuple[float, float]]] = {number: [] for number in range(len(cut))}
    order = [*times, *reversed(times)]
    for done, number in enumerate(order):
        model = copy.deepcopy(dense)
        cut_model(model, anatomy.sizes_with(cut[number]), identity)
        times[number].append(run_requests(model.to(_device()), inputs, sizes))
        del model
        if on_step is not None:
            on_step(done + 1, len(order))
    return [(min(x for x, _ in visits), min(x for _, x in visits)) for visits in times.values()]


def _row(
    number: int, anatomy: ModelAnatomy, widths: list[int], expected: Latency, measured: tuple[float, float]
) -> dict[str, Any]:
    prefill_ms, decode_ms = measured
    return {
        "plan": number,
        "sparsity": achieved_sparsity(anatomy, widths)[Scope.FFN],
        "widths": widths,
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
    steps = WidthSteps.build(anatomy, round_to=ROUND_TO)
    dense = np.array([x.ffn_width for x in anatomy.layers])
    found = []
    for sparsity in np.linspace(0.0, LARGEST_SPARSITY, PLANS):
        limits = parameter_limits(anatomy, steps, int(anatomy.ffn_parameters * (1 - sparsity)))
        found.append(limits.repair(list(dense * _shares(rng.uniform(0.2, 1.0, len(dense)), 1 - sparsity))))
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
def run_requests(model: "PreTrainedModel", inputs: dict[str, torch.Tensor], sizes: Sizes) -> tuple[float, float]:
    """Milliseconds of the prefill and of a decode step, medians over `sizes.requests`; a first one warms up."""
    device = model.device
    inputs = {name: value.to(device) for name, value in inputs.items()}
    prefills, steps = [], []
    for _ in range(sizes.requests + 1):
        start = _now(device)
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
        first = _now(device)
        for _ in range(sizes.output_tokens - 1):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        prefills.append(first - start)
        steps.append((_now(device) - first) / (sizes.output_tokens - 1))
    return 1e3 * median(prefills[1:]), 1e3 * median(steps[1:])


def _summary(rows: Sequence[dict[str, Any]], smoothing: float, profile_seconds: float) -> dict[str, float]:
    prefill = mean(abs(row["prefill_error"]) for row in rows)
    decode = mean(abs(row["decode_error"]) for row in rows)
    return {
        "latency_mape": (prefill + decode) / 2,
        "prefill_mape": prefill,
        "decode_mape": decode,
        "worst_error": max(max(abs(row["prefill_error"]), abs(row["decode_error"])) for row in rows),
        "profile_smoothing": smoothing,
        "profile_seconds": profile_seconds,
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


def _inputs(sizes: Sizes, config: "LlavaConfig") -> dict[str, torch.Tensor]:
    """One prompt of `sizes.prompt_tokens`, its picture's tokens first."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(10, sizes.vocabulary, (1, sizes.prompt_tokens - sizes.image_tokens), generator=generator)
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
