"""How many evaluators fit."""

from collections.abc import Mapping
from typing import Any

import pytest

from engines.ray.actor_capacity import ActorCapacity

GIB = 2**30


def node(*, alive: bool = True, **resources: float) -> Mapping[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_one_a_gpu_whatever_the_memory() -> None:
    nodes = [node(CPU=8.0, GPU=2.0, memory=4.0 * GIB), node(CPU=4.0, GPU=1.0, memory=1.0 * GIB)]
    assert ActorCapacity.of(nodes, 16 * GIB, use_gpus=True) == ActorCapacity("GPU", 3, 3, 0)


@pytest.mark.parametrize(
    ("memory_bytes", "num_actors"),
    [
        (1 * GIB, 20),  # 1.25 GiB reserved: every core has room
        (8 * GIB, 9),  # 10 GiB reserved: six times in 64 GiB, three times in 32 GiB
        (16 * GIB, 4),  # 20 GiB: three times and once
    ],
)
def test_one_a_core_as_far_as_the_memory_of_its_node_goes(memory_bytes: int, num_actors: int) -> None:
    nodes = [node(CPU=16.0, memory=64.0 * GIB), node(CPU=4.0, GPU=1.0, memory=32.0 * GIB), node(alive=False, CPU=99.0)]
    reserved = memory_bytes * 5 // 4
    assert ActorCapacity.of(nodes, memory_bytes, use_gpus=False) == ActorCapacity("CPU", 20, num_actors, reserved)


def test_one_where_none_seems_to_fit() -> None:
    nodes = [node(CPU=2.0, memory=8.0 * GIB), node(CPU=2.0, memory=8.0 * GIB)]
    assert ActorCapacity.of(nodes, 14 * GIB, use_gpus=True) == ActorCapacity("CPU", 4, 1, 0)


def test_no_device_or_no_estimate() -> None:
    assert ActorCapacity.of([node(memory=8.0 * GIB)], GIB, use_gpus=True) == ActorCapacity("CPU", 0, 0, 0)
    assert ActorCapacity.of([node(CPU=3.0), node(CPU=2.0)], 0, use_gpus=True) == ActorCapacity("CPU", 5, 5, 0)
