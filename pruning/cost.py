"""Costs of a configuration: parameters, bytes on disk and in memory, FLOPs, time. No model is built for them."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory

from pruning.activations import activation_bytes
from pruning.anatomy import ModelAnatomy, TensorSpec
from pruning.compensation import bias_parameters, pruned_tensors
from pruning.dtypes import DTYPE_BYTES
from pruning.plan import Achieved, Workload
from pruning.target import achieved_sparsity

if TYPE_CHECKING:
    from pruning.latency import LatencyModel

MAX_SHARD_SIZE = 5 * 10**9
"""Bytes of tensors in one weight file: the hub's default, 5GB."""
SAFETENSORS_METADATA = {"format": "pt"}

TensorHeader = tuple[str, tuple[int, ...], str]
"""(name, shape, safetensors dtype name)."""


def tensor_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of one tensor."""
    size = DTYPE_BYTES[dtype]
    for extent in shape:
        size *= extent
    return size


def plan_shards(tensors: Sequence[TensorHeader], *, max_shard_size: int = MAX_SHARD_SIZE) -> StateDictSplit:
    """Which file each tensor goes to, by the rule and the file names of the Hugging Face hub."""
    return split_state_dict_into_shards_factory(
        {name: (shape, dtype) for name, shape, dtype in tensors},
        get_storage_size=lambda header: tensor_bytes(header[0], header[1]),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )


def safetensors_file_bytes(tensors: Sequence[TensorHeader]) -> int:
    """The size of a safetensors file with these tensors: 8 bytes of length, the JSON header, the data.

    Follows the format's reference writer: tensors by descending element size and then by name, the header as compact
    JSON padded with spaces to a multiple of 8 (https://github.com/huggingface/safetensors, "Format").
    """
    header: dict[str, Any] = {"__metadata__": SAFETENSORS_METADATA}
    offset = 0
    for name, shape, dtype in sorted(tensors, key=lambda t: (-DTYPE_BYTES[t[2]], t[0])):
        end = offset + tensor_bytes(shape, dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + (len(text) + 7) // 8 * 8 + offset


def disk_bytes(anatomy: ModelAnatomy, widths: Sequence[int], *, compensates: bool = False) -> int:
    """Bytes of all weight files of the pruned checkpoint, as `prune_checkpoint` writes them."""
    return _weight_file_bytes(pruned_tensors(anatomy, widths, compensates=compensates))


def _weight_file_bytes(tensors: Sequence[TensorSpec]) -> int:
    headers = {t.name: (t.name, t.shape, t.dtype) for t in tensors}
    shards = plan_shards(list(headers.values())).filename_to_tensors
    return sum(safetensors_file_bytes([headers[name] for name in names]) for names in shards.values())


def kv_cache_bytes(anatomy: ModelAnatomy, workload: Workload) -> int:
    """Keys and values of every layer, for every position of `workload`, in the weights' dtype."""
    tokens = workload.batch * (workload.prompt_tokens + workload.output_tokens)
    per_token = sum(2 * x.num_kv_groups * x.head_dim for x in anatomy.layers)
    return tokens * per_token * DTYPE_BYTES[anatomy.dtype]


def added_bias_parameters(anatomy: ModelAnatomy, widths: Sequence[int]) -> list[int]:
    """[L] parameters of the biases that compensation adds: none where a layer stays dense."""
    return [
        bias if width < layer.ffn_width else 0
        for bias, width, layer in zip(bias_parameters(anatomy), widths, anatomy.layers, strict=True)
    ]


def flops(anatomy: ModelAnatomy, widths: Sequence[int], workload: Workload, *, compensates: bool = False) -> int:
    """Floating-point operations of decoder and output head, a multiply-add counted as two.

    Every position passes each layer's weights once (2 operations a parameter, norms included: under 0.1% of a real
    layer); attention adds 4 x heads x head_dim operations for every position attended to, causally; the head runs
    once for each generated token. The vision tower is not counted.
    """
    prompt, output = workload.prompt_tokens, workload.output_tokens
    # The last generated token is never fed back.
    positions = prompt + max(output - 1, 0)
    attended = positions * (positions + 1) // 2
    total = 0
    biases = added_bias_parameters(anatomy, widths) if compensates else [0] * len(widths)
    for width, bias, layer in zip(widths, biases, anatomy.layers, strict=True):
        parameters = layer.parameters - (layer.ffn_width - width) * layer.ffn_parameters_per_channel + bias
        total += 2 * parameters * positions + 4 * layer.num_heads * layer.head_dim * attended
    total += 2 * anatomy.hidden_size * anatomy.vocab_size * output
    return total * workload.batch


def price(
    anatomy: ModelAnatomy,
    widths: Sequence[int],
    workload: Workload | None = None,
    *,
    compensates: bool = False,
    latency: "LatencyModel | None" = None,
) -> Achieved:
    """All costs of a model whose FFNs have `widths` [L], with the biases that compensation adds or without.

    `latency` prices `workload` on a device; without it, nothing is said about time.
    """
    workload = workload or Workload()
    added = sum(added_bias_parameters(anatomy, widths)) if compensates else 0
    removed = sum((x.ffn_width - w) * x.ffn_parameters_per_channel for w, x in zip(widths, anatomy.layers, strict=True))
    tensors = pruned_tensors(anatomy, widths, compensates=compensates)
    cache, activations = kv_cache_bytes(anatomy, workload), activation_bytes(anatomy, workload)
    achieved = Achieved(
        sparsity=achieved_sparsity(anatomy, list(widths), added_parameters=added),
        parameters=anatomy.total_parameters - removed + added,
        disk_bytes=_weight_file_bytes(tensors),
        memory_bytes=sum(tensor_bytes(t.shape, t.dtype) for t in tensors) + cache + activations,
        kv_cache_bytes=cache,
        activation_bytes=activations,
        flops=flops(anatomy, widths, workload, compensates=compensates),
        workload=workload,
    )
    if latency is None:
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
