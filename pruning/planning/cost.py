"""Costs of a configuration: parameters, bytes on disk and in memory, FLOPs, time. No model is built for them."""

import math
from collections.abc import Sequence

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import TensorSpec, Unit
from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE, plan_shards, safetensors_file_bytes, tensor_bytes
from pruning.planning.activations import activation_bytes
from pruning.planning.added_biases import bias_parameters, pruned_tensors
from pruning.planning.latency_model import LatencyModel
from pruning.planning.plan import Achieved
from pruning.planning.target import achieved_sparsity
from pruning.planning.workload import Workload


def _weight_file_bytes(tensors: Sequence[TensorSpec], data_bytes: int) -> int:
    """Bytes of the files that `prune_checkpoint` writes for `tensors`; the tensors alone take `data_bytes`."""
    headers = {t.name: (t.name, t.shape, t.dtype) for t in tensors}
    if data_bytes <= MAX_SHARD_SIZE:
        return safetensors_file_bytes(list(headers.values()))
    shards = plan_shards(list(headers.values())).filename_to_tensors
    return sum(safetensors_file_bytes([headers[name] for name in names]) for names in shards.values())


def _data_bytes(tensors: Sequence[TensorSpec]) -> int:
    return sum(tensor_bytes(t.shape, t.dtype) for t in tensors)


def kv_cache_bytes(anatomy: ModelAnatomy, workload: Workload, kv_groups: Sequence[int] | None = None) -> int:
    """Keys and values of `kv_groups` [L], by default all, for every position of `workload`, in the weights' dtype.

    Layers with a sliding window keep no more positions than it sees.
    """
    positions = workload.prompt_tokens + workload.output_tokens
    groups = anatomy.sizes_with((), kv_groups).kv_groups
    values = sum(
        2 * kept * x.head_dim * min(positions, x.window or positions)
        for kept, x in zip(groups, anatomy.layers, strict=True)
    )
    return workload.batch * values * DTYPE_BYTES[anatomy.dtype]


def group_parameters(anatomy: ModelAnatomy) -> list[int]:
    """[L] parameters of one KV group: its rows of queries, keys and values, biases too, and the columns they go to."""
    totals = [0] * anatomy.num_layers
    for tensor in anatomy.tensors:
        if tensor.layer is not None and tensor.holds(Unit.KV_GROUP):
            totals[tensor.layer] += math.prod(tensor.shape)
    return [total // layer.num_kv_groups for total, layer in zip(totals, anatomy.layers, strict=True)]


def _removed_by_groups(anatomy: ModelAnatomy, kv_groups: Sequence[int]) -> list[int]:
    """[L] parameters that go with the KV groups that are not kept."""
    if all(kept == layer.num_kv_groups for kept, layer in zip(kv_groups, anatomy.layers, strict=True)):
        return [0] * anatomy.num_layers
    each = group_parameters(anatomy)
    return [(x.num_kv_groups - g) * n for g, n, x in zip(kv_groups, each, anatomy.layers, strict=True)]


def added_bias_parameters(anatomy: ModelAnatomy, widths: Sequence[int]) -> list[int]:
    """[L] parameters of the biases that compensation adds: none where a layer stays dense."""
    return [
        bias if width < layer.ffn_width else 0
        for bias, width, layer in zip(bias_parameters(anatomy), widths, anatomy.layers, strict=True)
    ]


def flops(
    anatomy: ModelAnatomy,
    widths: Sequence[int],
    workload: Workload,
    *,
    kv_groups: Sequence[int] | None = None,
    compensates: bool = False,
) -> int:
    """Floating-point operations of decoder and output head, a multiply-add counted as two.

    Every position passes each layer's weights once (2 operations a parameter, norms included: under 0.1% of a real
    layer); attention adds 4 x heads x head_dim operations for every position attended to, causally; the head runs
    once for each generated token. The vision tower is not counted. An upper bound for layers with a sliding window:
    they are counted as if they saw everything.
    """
    prompt, output = workload.prompt_tokens, workload.output_tokens
    # The last generated token is never fed back.
    positions = prompt + max(output - 1, 0)
    attended = positions * (positions + 1) // 2
    total = 0
    groups = anatomy.sizes_with(widths, kv_groups).kv_groups
    biases = added_bias_parameters(anatomy, widths) if compensates else [0] * len(widths)
    removed = _removed_by_groups(anatomy, groups)
    for width, kept, bias, less, layer in zip(widths, groups, biases, removed, anatomy.layers, strict=True):
        parameters = layer.parameters - (layer.ffn_width - width) * layer.ffn_parameters_per_channel + bias - less
        total += 2 * parameters * positions + 4 * kept * layer.heads_per_group * layer.head_dim * attended
    total += 2 * anatomy.hidden_size * anatomy.vocab_size * output
    return total * workload.batch


def price(
    anatomy: ModelAnatomy,
    widths: Sequence[int],
    workload: Workload | None = None,
    *,
    kv_groups: Sequence[int] | None = None,
    compensates: bool = False,
    latency: LatencyModel | None = None,
) -> Achieved:
    """All costs of a model whose FFNs have `widths` [L], with the biases that compensation adds or without.

    `kv_groups` [L] stay of each layer's attention, by default all. `latency` prices `workload` on a device. It knows
    the time of whole attention only: where groups are cut, and without it, nothing is said about time.
    """
    workload = workload or Workload()
    sizes = anatomy.sizes_with(widths, kv_groups)
    added = sum(added_bias_parameters(anatomy, widths)) if compensates else 0
    ffn = sum((x.ffn_width - w) * x.ffn_parameters_per_channel for w, x in zip(widths, anatomy.layers, strict=True))
    attention = sum(_removed_by_groups(anatomy, sizes.kv_groups))
    tensors = pruned_tensors(anatomy, sizes, compensates=compensates)
    weights = _data_bytes(tensors)
    cache, activations = kv_cache_bytes(anatomy, workload, sizes.kv_groups), activation_bytes(anatomy, workload)
    achieved = Achieved(
        removed=achieved_sparsity(anatomy, list(widths), added_parameters=added, removed_attention=attention),
        parameters=anatomy.total_parameters - ffn - attention + added,
        disk_bytes=_weight_file_bytes(tensors, weights),
        memory_bytes=weights + cache + activations,
        kv_cache_bytes=cache,
        activation_bytes=activations,
        flops=flops(anatomy, widths, workload, kv_groups=sizes.kv_groups, compensates=compensates),
        workload=workload,
    )
    if latency is None or sizes.kv_groups != anatomy.dense_sizes.kv_groups:
        return achieved
    times = latency.latency(widths)
    return achieved.model_copy(
        update={
            "latency_ms": times.total_ms,
            "prefill_ms": times.prefill_ms,
            "decode_ms_per_token": times.decode_ms_per_token,
            "latency_source": latency.source.value,
        }
    )
