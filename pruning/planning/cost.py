"""Exact costs of an architecture: parameters, bytes on disk and in memory, FLOPs, time. No model is built for them.

Parameters, memory and FLOPs are the sums that limits are made of, see `prices`. So is the time, in nanoseconds: its
phases come with it. Weight files are counted with the headers that they really have.
"""

from collections.abc import Sequence

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.decoder_layer import TensorSpec
from pruning.anatomy.gguf_types import TensorType
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE, plan_shards, safetensors_file_bytes, tensor_bytes
from pruning.planning import prices
from pruning.planning.activations import activation_bytes
from pruning.planning.added_biases import pruned_tensors
from pruning.planning.gguf_price import gguf_bytes, is_priced
from pruning.planning.latency_model import LatencyModel
from pruning.planning.plan import Achieved
from pruning.planning.target import achieved_sparsity
from pruning.planning.workload import Workload
from pruning.planning.zeroed import zeroed_shares


def weight_file_bytes(tensors: Sequence[TensorSpec]) -> int:
    """Bytes of the files that `prune_checkpoint` writes for `tensors`, which are in the order of their names."""
    headers = [(t.name, t.shape, t.dtype) for t in tensors]
    if sum(tensor_bytes(t.shape, t.dtype) for t in tensors) <= MAX_SHARD_SIZE:
        return safetensors_file_bytes(headers)
    of_name = dict(zip((t.name for t in tensors), headers, strict=True))
    shards = plan_shards(headers).filename_to_tensors
    return sum(safetensors_file_bytes([of_name[name] for name in names]) for names in shards.values())


def kv_cache_bytes(anatomy: ModelAnatomy, workload: Workload, architecture: Architecture | None = None) -> int:
    """Keys and values of every KV group that is kept, by default all, for every position of `workload`."""
    groups = anatomy.kv_groups(architecture or Architecture())
    return sum(g * each for g, each in zip(groups, prices.kv_cache_bytes_per_group(anatomy, workload), strict=True))


def achieved_costs(
    anatomy: ModelAnatomy,
    architecture: Architecture,
    workload: Workload | None = None,
    *,
    compensates: bool = False,
    latency: LatencyModel | None = None,
    gguf: TensorType | None = None,
) -> Achieved:
    """All costs of `architecture`, with the biases that compensation adds or without. Raises InputError as
    `zeroed_weights`.

    `latency` prices `workload` on a device. Without it, and where it has no time for what is cut, nothing is said about
    time. `gguf` is what matrices of a GGUF file are stored as; without it, one of f16 is priced where weights are in
    fewer bits, if it has a price (`gguf_price.is_priced`).
    """
    workload = workload or Workload()
    if gguf is None and any(x.bits is not None for _, x in architecture.items) and is_priced(anatomy, architecture):
        gguf = TensorType.F16
    achieved = Achieved(
        removed=achieved_sparsity(anatomy, architecture, compensates=compensates),
        zeroed=zeroed_shares(anatomy, architecture),
        parameters=prices.parameters(anatomy, compensates=compensates).cost(architecture),
        disk_bytes=weight_file_bytes(pruned_tensors(anatomy, architecture, compensates=compensates)),
        gguf_bytes=None if gguf is None else gguf_bytes(anatomy, gguf, compensates=compensates).cost(architecture),
        memory_bytes=prices.memory_bytes(anatomy, workload, compensates=compensates).cost(architecture),
        kv_cache_bytes=kv_cache_bytes(anatomy, workload, architecture),
        activation_bytes=activation_bytes(anatomy, workload),
        flops=prices.flops(anatomy, workload, compensates=compensates).cost(architecture),
        workload=workload,
    )
    times = None if latency is None else prices.LatencyPrice(anatomy, latency).latency(architecture)
    if latency is None or times is None:
        return achieved
    return achieved.model_copy(
        update={
            "latency_ms": times.total_ms,
            "prefill_ms": times.prefill_ms,
            "decode_ms_per_token": times.decode_ms_per_token,
            "latency_source": latency.source.value,
        }
    )
