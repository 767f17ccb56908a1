"""Measuring a device: what one model's layers, and the rest of it, take on this machine.

1. Build a model whose layers are the rungs of a ladder of KV groups and FFN widths (`ladder`).
2. Round after round: every prompt length once, and decode steps behind each (`requests`); a first round warms up.
3. Medians, then isotonic regression: tables in which no time falls while a layer keeps more or the length grows
   (`ladder_times`).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.dtypes import torch_dtype
from pruning.devices.profile import DeviceProfile
from pruning.devices.tables import LayerShape, OutsideShape, OutsideTable
from pruning.devices.timing.ladder import LadderPlan, build_ladder_model
from pruning.devices.timing.ladder_times import LadderTimes, layer_table
from pruning.devices.timing.machine import (
    Machine,
    describe_machine,
    measure_bandwidth,
    measure_flops_per_s,
)
from pruning.devices.timing.requests import RequestTimes, random_prompt, time_images, time_request
from pruning.devices.timing.stopwatch import PassTimes, Stopwatch
from pruning.errors import InputError
from pruning.planning.activations import activation_bytes
from pruning.planning.cost import kv_cache_bytes
from pruning.planning.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ProfileSettings:
    """What to measure.

    Attributes:
        batch: sequences at once.
        prompt_tokens: lengths of prompts. Between the shortest and the longest, times are interpolated.
        output_tokens: the longest answer: decoding is measured up to that many positions behind the longest prompt.
        seconds: for about how long.
        min_rounds: every time is the median of at least as many.
    """

    batch: int = 1
    prompt_tokens: tuple[int, ...] = (128, 256, 512, 1024)
    output_tokens: int = 128
    seconds: float = 60.0
    min_rounds: int = 5

    def __post_init__(self) -> None:
        values = f"batch={self.batch}, prompt_tokens={self.prompt_tokens}, output_tokens={self.output_tokens}"
        if not self.prompt_tokens or min(self.batch, *self.prompt_tokens, self.output_tokens, self.min_rounds) < 1:
            raise InputError("batch, prompt_tokens, output_tokens and rounds are at least 1", values=values)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Prompt lengths that are run, ascending: those asked for, and one where the longest answer ends."""
        longest = max(self.prompt_tokens) + self.output_tokens
        return tuple(sorted({*self.prompt_tokens, longest}))


@dataclass
class _Measurements:
    """By length: the passes of every round."""

    prefill: dict[int, list[PassTimes]] = field(default_factory=lambda: defaultdict(list))
    decode: dict[int, list[PassTimes]] = field(default_factory=lambda: defaultdict(list))
    images_ms: list[float] = field(default_factory=list)

    def add(self, length: int, times: RequestTimes) -> None:
        self.prefill[length].append(times.prefill)
        self.decode[length].extend(times.decode)


def profile_device(
    config: "PreTrainedConfig",
    anatomy: ModelAnatomy,
    *,
    device_id: str,
    name: str | None = None,
    settings: ProfileSettings | None = None,
    images: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> DeviceProfile:
    """What a model of `config`, whose anatomy is `anatomy`, takes on this machine.

    Args:
        config: of the dense model.
        anatomy: of the same.
        device_id: the id of the profile.
        name: shown to people; default: the processor's or the accelerator's own name.
        settings: what to measure.
        images: the processor's output for `settings.batch` sequences with one image each; None: vision is not timed.
        device: what to run on; default: the first CUDA device if there is one, else the CPU.
        on_step: told of progress, `on_step(done, total)`.

    Raises:
        InputError: the layers are not of one shape, the dtype cannot be timed, or the model for timing does not fit.
    """
    settings = settings or ProfileSettings()
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = _one_shape(anatomy)
    machine = describe_machine(device)
    plan = LadderPlan.of(anatomy)
    _check_memory(plan, anatomy, settings, machine)
    flops = {dtype: measure_flops_per_s(device, dtype) for dtype in dict.fromkeys(("F32", shape.dtype))}
    bandwidth = measure_bandwidth(device)
    model = build_ladder_model(config, plan, dtype=torch_dtype(shape.dtype), device=device)
    measured = _measure(model, settings, images, on_step or _silent)
    lengths = settings.lengths
    prefill = LadderTimes.of([measured.prefill[n] for n in lengths], plan)
    decode = LadderTimes.of([measured.decode[n] for n in lengths], plan)
    return DeviceProfile(
        id=device_id,
        name=name or machine.name,
        kind="cuda" if device.type == "cuda" else "cpu",
        machine=machine.description,
        memory_bytes=machine.memory_bytes,
        flops_per_s=flops,
        bandwidth_bytes_per_s=bandwidth,
        layers=(layer_table(shape, settings.batch, lengths, plan, prefill, decode),),
        outside=(
            OutsideTable(
                shape=OutsideShape.is_of(anatomy),
                batch=settings.batch,
                prompt_tokens=lengths,
                prefill_ms=prefill.outside_ms,
                decode_ms=median(decode.outside_ms),
                vision_ms=median(measured.images_ms) if measured.images_ms else 0.0,
            ),
        ),
    )


def _measure(
    model: "PreTrainedModel",
    settings: ProfileSettings,
    images: Mapping[str, Any] | None,
    on_step: Callable[[int, int], None],
) -> _Measurements:
    prompts = {n: random_prompt(model, batch=settings.batch, tokens=n) for n in settings.lengths}

    def run_round(into: _Measurements) -> float:
        start = time.perf_counter()
        for length, prompt in prompts.items():
            into.add(length, time_request(stopwatch, prompt))
        if images is not None:
            into.images_ms.append(time_images(model, images))
        return time.perf_counter() - start

    with Stopwatch(model) as stopwatch:
        run_round(_Measurements())
        round_seconds = run_round(_Measurements())
        rounds = max(settings.min_rounds, int(settings.seconds / round_seconds))
        measured = _Measurements()
        for done in range(rounds):
            on_step(done, rounds)
            run_round(measured)
        on_step(rounds, rounds)
    return measured


def _one_shape(anatomy: ModelAnatomy) -> LayerShape:
    shapes = {LayerShape.is_of(anatomy, layer) for layer in anatomy.layers}
    if len(shapes) > 1:
        raise InputError("a profile is of layers of one shape", values=f"{len(shapes)} shapes in {anatomy.model_type}")
    return shapes.pop()


def _check_memory(plan: LadderPlan, anatomy: ModelAnatomy, settings: ProfileSettings, machine: Machine) -> None:
    """Raises InputError unless weights, two copies of the cache and activations fit into what is free."""
    longest = Workload(batch=settings.batch, prompt_tokens=settings.lengths[-1], output_tokens=1)
    cache = kv_cache_bytes(anatomy, longest) * len(plan.rungs) // anatomy.num_layers
    needed = plan.weight_bytes + 2 * cache + activation_bytes(anatomy, longest)
    if needed > machine.free_bytes:
        raise InputError(
            "the model that is timed must fit into free memory",
            values=f"{needed:,} bytes needed ({plan.weight_bytes:,} of weights), {machine.free_bytes:,} free",
            remedy="Free memory, or ask for a smaller batch or shorter prompts",
        )


def _silent(_done: int, _total: int) -> None:
    pass
