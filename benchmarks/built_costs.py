"""What a plan's model costs, counted anew on the model that its config builds, without the planner's arithmetic.

The config is written, read and built by the code that users load pruned models with, on the meta device: all shapes, no
weights. Parameters, bytes, operations and the KV cache are then sums over the modules that are there; files and latency
are counted in `built_files` and `built_latency`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from benchmarks.built_files import file_bytes
from benchmarks.built_latency import BuiltLatency, built_latency
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_view import decoder_view
from pruning.anatomy.dtypes import torch_dtype
from pruning.checkpoints.loading import resized_class
from pruning.cutting.pruned_config import write_config
from pruning.devices.device import Device
from pruning.planning.added_biases import pruned_tensors
from pruning.planning.plan import PruningPlan
from pruning.planning.scope import Scope, scope_parameters
from pruning.planning.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BuiltCosts:
    """Costs of a model that was built, in the units of `Achieved`. `weight_bytes` are of the parameters alone.

    What is skipped has a width, or a number of KV groups, of 0. `latency` is None if no device is named.
    """

    widths: tuple[int, ...]
    kv_groups: tuple[int, ...]
    parameters: int
    sparsity: dict[Scope, float]
    weight_bytes: int
    kv_cache_bytes: int
    flops: int
    disk_bytes: int
    latency: BuiltLatency | None


def build_on_meta(source: Path, plan: PruningPlan, anatomy: ModelAnatomy, folder: Path) -> "PreTrainedModel":
    """The model of `plan`, which was made for the checkpoint or config in `source`, built from the config alone.

    `folder` takes config.json.
    """
    config = write_config(source, plan, folder, anatomy)
    widths = plan.ffn_widths(anatomy)
    cut = [x.index for x, width in zip(anatomy.layers, widths, strict=True) if 0 < width < x.ffn_width]
    compensated = cut if plan.compensates else []
    with _default_dtype(torch_dtype(anatomy.dtype)), torch.device("meta"):
        model: PreTrainedModel = resized_class(config, compensated=compensated)(config)
    return model


def count_costs(
    model: "PreTrainedModel", plan: PruningPlan, anatomy: ModelAnatomy, device: Device | None
) -> BuiltCosts:
    """Count `model`, which was built for `plan`; `anatomy` is of the dense model.

    Raises:
        ValueError: the model's tensors are not those that the plan's files would hold.
    """
    workload, view = plan.achieved.workload, decoder_view(model)
    named = dict(model.named_parameters())
    planned = pruned_tensors(anatomy, plan.architecture(anatomy), compensates=plan.compensates)
    if sorted(tuple(x.shape) for x in named.values()) != sorted(t.shape for t in planned):
        raise ValueError(f"plan {plan.plan_id}: its files hold other tensors than the model that its config builds")
    parameters = sum(x.numel() for x in named.values())
    in_layers = sum(x.numel() for layer in view.layers for x in layer.parameters())
    widths = tuple(sum(x.in_features for x in _linears([layer], "mlp.down_proj")) for layer in view.layers)
    keys = (sum(x.out_features for x in _linears([layer], "self_attn.k_proj")) for layer in view.layers)
    kv_groups = tuple(width // layer.head_dim for width, layer in zip(keys, anatomy.layers, strict=True))
    removed = anatomy.total_parameters - parameters
    compensates = plan.compensates
    latency = built_latency(model, device, workload, anatomy.dtype, compensated=compensates) if device else None
    return BuiltCosts(
        widths=widths,
        kv_groups=kv_groups,
        parameters=parameters,
        sparsity={scope: removed / scope_parameters(anatomy, scope) for scope in Scope},
        weight_bytes=sum(x.numel() * x.element_size() for x in named.values()),
        kv_cache_bytes=_kv_cache_bytes(view.layers, workload),
        flops=_flops(view.layers, in_layers, model, workload),
        disk_bytes=file_bytes(model),
        latency=latency,
    )


def _kv_cache_bytes(layers: Sequence[nn.Module], workload: Workload) -> int:
    """Keys and values of every position: as wide as what the projections put out."""
    positions = workload.batch * (workload.prompt_tokens + workload.output_tokens)
    projections = _linears(layers, "self_attn.k_proj", "self_attn.v_proj")
    return positions * sum(x.out_features * x.weight.element_size() for x in projections)


def _flops(layers: Sequence[nn.Module], in_layers: int, model: "PreTrainedModel", workload: Workload) -> int:
    """Position by position: weights, then scores and weighted sum over all positions so far; the head per output."""
    positions = workload.prompt_tokens + max(workload.output_tokens - 1, 0)
    pairs = positions * (positions + 1) // 2
    attention = sum(2 * 2 * x.out_features * pairs for x in _linears(layers, "self_attn.q_proj"))
    head: int = model.get_output_embeddings().weight.numel()
    return workload.batch * (2 * in_layers * positions + attention + 2 * head * workload.output_tokens)


def _linears(layers: Sequence[nn.Module], *names: str) -> list[nn.Linear]:
    """Of each layer those of the projections that it still has."""
    modules = [dict(layer.named_modules()) for layer in layers]
    return [x for named in modules for name in names if isinstance(x := named.get(name), nn.Linear)]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
