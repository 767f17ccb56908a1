"""How many evaluators a cluster holds, by its devices and its memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

USABLE_SHARE = 0.8
"""Of a node's memory as Ray reports it: the rest is for whatever else runs there. Ray ends processes at 95 %."""


@dataclass(frozen=True, slots=True)
class ActorCapacity:
    """What the actors of a search are, if it is not said how many.

    Attributes:
        device: what each has one of, "GPU" or "CPU".
        devices: how many of them the cluster has.
        num_actors: how many evaluators fit; 0 if there is no device.
        reserved_bytes: memory that each must claim of its node, so that Ray places no more there than fit; 0: none.
    """

    device: str
    devices: int
    num_actors: int
    reserved_bytes: int

    @classmethod
    def of(cls, nodes: Sequence[Mapping[str, Any]], memory_bytes: int, *, use_gpus: bool) -> "ActorCapacity":
        """One actor a GPU if there is any and `use_gpus`, otherwise one a CPU core as far as memory goes.

        Args:
            nodes: as `ray.nodes()` lists them.
            memory_bytes: what an evaluator on CPU takes. Where it fits nowhere there is one all the same: it is an
                estimate.
            use_gpus: False: CPU cores even if there are GPUs.
        """
        resources = [node["Resources"] for node in nodes if node["Alive"]]
        gpus, cpus = (sum(int(found.get(name, 0)) for found in resources) for name in ("GPU", "CPU"))
        if gpus and use_gpus:
            return cls("GPU", gpus, gpus, 0)
        reserved = math.ceil(memory_bytes / USABLE_SHARE)
        fitting = sum(
            min(int(found.get("CPU", 0)), int(found.get("memory", 0) // reserved) if reserved else cpus)
            for found in resources
        )
        return cls("CPU", cpus, fitting, reserved) if fitting else cls("CPU", cpus, min(cpus, 1), 0)
