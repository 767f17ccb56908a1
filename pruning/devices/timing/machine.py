"""The machine that this process runs on: its names, its memory, and what its arithmetic and memory reach."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.dtypes import torch_dtype
from pruning.devices.tables import Dtype

if TYPE_CHECKING:
    import torch

_REPEATS = 5
_MATRIX_BYTES = 2**29
"""Of the matrix that the bandwidth is measured with: more than the caches of any one processor hold."""


@dataclass(frozen=True)
class Machine:
    """What a profile says of where it was measured.

    Attributes:
        name: the processor's or the accelerator's name.
        description: with threads, system and the versions that times depend on.
        memory_bytes: all memory that a model could use.
        free_bytes: what is free of it now.
    """

    name: str
    description: str
    memory_bytes: int
    free_bytes: int


def describe_machine(device: "torch.device") -> Machine:
    """The machine, as torch's `device` sees it."""
    import torch

    software = f"torch {version('torch')}, transformers {version('transformers')}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        return Machine(name, f"{name}, CUDA {torch.version.cuda}, {software}", total, free)
    name, threads = cpu_model(), torch.get_num_threads()
    description = f"{name}, {threads} thread{'s' if threads > 1 else ''}, {platform.system()}, {software}"
    page = os.sysconf("SC_PAGE_SIZE")
    return Machine(name, description, page * os.sysconf("SC_PHYS_PAGES"), _free_memory_bytes())


def cpu_model() -> str:
    """The processor's name; Linux keeps it in /proc, elsewhere `platform` knows what there is to know."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure_flops_per_s(device: "torch.device", dtype: Dtype) -> float:
    """Operations per second of a large square matrix product in `dtype`, the median of a few."""
    import torch

    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.ones(size, size, dtype=torch_dtype(dtype), device=device) for _ in range(2))
    return 2.0 * size**3 / _median_seconds(lambda: left @ right, device)


def measure_bandwidth(device: "torch.device") -> float:
    """Bytes per second of a matrix-vector product, which reads each byte of its matrix once: what decoding does."""
    import torch

    size = math.isqrt(_MATRIX_BYTES // 4)
    matrix, vector = torch.ones(size, size, device=device), torch.ones(size, device=device)
    return 4.0 * size * size / _median_seconds(lambda: matrix @ vector, device)


def _median_seconds(work: "Callable[[], torch.Tensor]", device: "torch.device") -> float:
    import torch

    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one warms up


def _free_memory_bytes() -> int:
    """Memory that a new allocation can have without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux: whatever is there may be free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
