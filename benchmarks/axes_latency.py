"""Predicted against measured latency where KV groups, FFN widths and whole sub-layers go together.

The machine is profiled with the layers of the checkpoint; then shapes of the joint space that should take all to 40%
of the dense model's time are really cut out of the checkpoint, and answer requests: a prompt in, then tokens one by one
on a cache that grows. No length that is timed was profiled.

`python -m benchmarks.axes_latency` takes a minute or two on a quiet machine, and prints what it finds.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.latency import compared, run_architectures, summary_of
from benchmarks.subject import REFERENCE
from lop.console.console import bar
from lop.workflows.compute import load_for_compute
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.devices.device import profiled_device
from pruning.devices.latency import latency_model
from pruning.devices.profile import DeviceProfile
from pruning.devices.timing.profiling import ProfileSettings, profile_device
from pruning.devices.timing.requests import random_prompt
from pruning.planning.axis_spaces import SpaceName, fine_space
from pruning.planning.latency_model import LatencyModel, LatencySource
from pruning.planning.limits import Limits
from pruning.planning.prices import LatencyPrice
from pruning.planning.workload import Workload

NUM_SHAPES = 6
SMALLEST_SHARE = 0.4
ROUND_TO = 8
PROFILED = ProfileSettings(prompt_tokens=(64, 128, 256), output_tokens=64, seconds=30.0)
TIMED = (Workload(prompt_tokens=96, output_tokens=24), Workload(prompt_tokens=192, output_tokens=48))
"""Lengths between those of the profile."""

REQUESTS = 6


def axes_latency(
    checkpoint: Path = REFERENCE / "model",
    *,
    profile: DeviceProfile | None = None,
    settings: ProfileSettings = PROFILED,
    requests: int = REQUESTS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Of the model in `checkpoint`; `profile` is of this machine and its layers without pictures, by default measured
    now.

    Returns:
        `joint_latency_mape` is the mean absolute error of predicted prefill and decode times, as a fraction of the
        measured ones; a row a shape and workload.
    """
    dense = load_for_compute(checkpoint)
    anatomy = anatomy_of(dense)
    profile = profile or profile_device(dense.config, anatomy, device_id="this-machine", settings=settings)
    models = [latency_model(profiled_device(profile), anatomy, workload) for workload in TIMED]
    for model in models:
        assert model.source is LatencySource.MEASURED, model.description
    shapes = shapes_of(anatomy, models[-1], seed)
    inputs = [{"input_ids": random_prompt(dense, batch=1, tokens=workload.prompt_tokens)} for workload in TIMED]
    with torch.inference_mode():
        measured = run_architectures(dense, shapes, inputs, TIMED, requests, on_progress)
    rows = [
        {
            "shape": number,
            "ffn": list(anatomy.ffn_widths(shape)),
            "attention": list(anatomy.kv_groups(shape)),
            **compared(LatencyPrice(anatomy, model), shape, model.workload, times),
        }
        for number, (shape, of_shape) in enumerate(zip(shapes, measured, strict=True))
        for model, times in zip(models, of_shape, strict=True)
    ]
    summary = {f"joint_{name}": value for name, value in summary_of(rows).items()}
    return {**summary, "joint_profile_smoothing": profile.layers[0].smoothing, "rows": rows}


def shapes_of(anatomy: ModelAnatomy, model: LatencyModel, seed: int) -> list[Architecture]:
    """`NUM_SHAPES` of the joint space, at random, of evenly spaced shares of the dense model's time."""
    rng, price = np.random.default_rng(seed), LatencyPrice(anatomy, model)
    space = fine_space(anatomy, SpaceName.ALL, round_to=ROUND_TO)
    least, found = price.limit(space, 0).least, []
    for share in np.linspace(1.0, SMALLEST_SHARE, NUM_SHAPES):
        limits = Limits(space, (price.limit(space, max(int(share * price.total), least)),))
        worth = rng.normal(size=(space.num_decisions, int(space.counts.max())))
        found.append(space.architecture(limits.fit(rng.integers(space.counts), worth)))
    return found


def main(
    seed: Annotated[int, typer.Option(min=0, help="Of the shapes.")] = 0,
    requests: Annotated[int, typer.Option(min=1, help="Of each kind and visit.")] = REQUESTS,
) -> None:
    """Print what was found, as JSON."""
    with bar("requests") as on_progress:
        found = axes_latency(seed=seed, requests=requests, on_progress=on_progress)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
