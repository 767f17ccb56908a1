"""How long a request takes on a device, from the modules of a model that was built: stated anew, without product code.

From a profile's tables where they cover the request: a line between the two nearest widths, then between the two
nearest lengths. Else from the device's two figures: a pass takes as long as its operations at the peak or as its bytes
at the bandwidth, of which a data sheet's count 60% and 70% (docs/devices.md). In seconds and floating point; the
product counts whole nanoseconds, rounded up, so `rounding_ms` says how far the two may be apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from pruning.anatomy.decoder_view import decoder_view
from pruning.devices.device import Device
from pruning.devices.profile import LayerTable, OutsideTable
from pruning.planning.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DATA_SHEET_COMPUTE, DATA_SHEET_BANDWIDTH = 0.6, 0.7


@dataclass(frozen=True)
class BuiltLatency:
    """Of a whole request; `rounding_ms` is the most that rounding up adds to it."""

    total_ms: float
    rounding_ms: float
    source: str


@dataclass(frozen=True)
class _Layer:
    """Sizes of a decoder layer: all parameters but a bias that compensation added, and what projections put out."""

    width: int
    parameters: int
    queries: int
    keys_and_values: int


def built_latency(
    model: "PreTrainedModel", device: Device, workload: Workload, dtype: str, *, compensated: bool
) -> BuiltLatency:
    """Of `model` on `device`; `compensated` models have biases that are not counted."""
    layers = [_sizes(layer, compensated) for layer in decoder_view(model).layers]
    steps = max(workload.output_tokens - 1, 0)
    # Every step attends to one position more.
    attended = sum(workload.prompt_tokens + step for step in range(1, steps + 1)) / steps if steps else None
    tables = _tables(device, workload, model, attended)
    if tables is not None:
        layer, outside = tables
        source, prefill, decode = "measured", *_from_tables(layer, outside, layers, workload, attended)
    else:
        source, prefill, decode = "roofline", *_roofline(model, device, workload, dtype, layers, attended or 0.0)
    rounded = (len(layers) + 1) * (1 + steps)
    return BuiltLatency((prefill + steps * decode) * 1e3, (rounded + 1) / 1e6, source)


def _sizes(layer: nn.Module, compensated: bool) -> _Layer:
    linear = {name.split(".")[-1]: x for name, x in layer.named_modules() if isinstance(x, nn.Linear)}
    down = linear["down_proj"]
    added = down.bias.numel() if compensated and down.bias is not None else 0
    parameters = sum(x.numel() for x in layer.parameters()) - added
    kept = linear["k_proj"].out_features + linear["v_proj"].out_features
    return _Layer(down.in_features, parameters, linear["q_proj"].out_features, kept)


def _roofline(
    model: "PreTrainedModel",
    device: Device,
    workload: Workload,
    dtype: str,
    layers: Sequence[_Layer],
    attended: float,
) -> tuple[float, float]:
    """Seconds of the prefill, and of one step."""
    share = (1.0, 1.0) if device.profile else (DATA_SHEET_COMPUTE, DATA_SHEET_BANDWIDTH)
    peak = device.peak_flops_per_s.get(dtype, device.peak_flops_per_s["F32"]) * share[0]
    bandwidth = device.bandwidth_bytes_per_s * share[1]
    parameters = list(model.parameters())
    element: int = parameters[0].element_size()
    batch, prompt = workload.batch, workload.prompt_tokens

    def seconds(operations: float, elements: float) -> float:
        return max(operations / peak, elements * element / bandwidth)

    prefill = decode = 0.0
    for x in layers:
        pairs = prompt * (prompt + 1) / 2
        prefill += seconds(
            batch * (2 * x.parameters * prompt + 2 * 2 * x.queries * pairs),
            x.parameters + batch * x.keys_and_values * prompt,
        )
        decode += seconds(
            batch * (2 * x.parameters + 2 * 2 * x.queries * attended),
            x.parameters + batch * x.keys_and_values * attended,
        )
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    inside = sum(p.numel() for layer in decoder_view(model).layers for p in layer.parameters())
    rows = head.numel() if head is embedding else head.numel() + embedding.numel()
    vision = sum(p.numel() for p in parameters) - inside - rows
    hidden = head.shape[1]
    prefill += seconds(2 * head.numel() * batch, head.numel() + hidden * batch * prompt)
    prefill += seconds(2 * vision * _patches(model) * batch, vision)
    decode += seconds(2 * head.numel() * batch, head.numel() + hidden * batch)
    return prefill, decode


def _patches(model: nn.Module) -> int:
    """Positions of the vision tower."""
    tables = [x for name, x in model.named_modules() if "vision" in name and name.endswith("position_embedding")]
    (table,) = tables
    assert isinstance(table, nn.Embedding)
    return table.num_embeddings


def _tables(
    device: Device, workload: Workload, model: "PreTrainedModel", attended: float | None
) -> tuple[LayerTable, OutsideTable] | None:
    """The two tables of the profile if they cover the request; None if it has none, or they do not."""
    if device.profile is None:
        return None
    hidden = model.get_input_embeddings().weight.shape[1]

    layers = [x for x in device.profile.layers if x.shape.hidden_size == hidden and x.batch == workload.batch]
    others = [x for x in device.profile.outside if x.shape.hidden_size == hidden and x.batch == workload.batch]
    if not layers or not others:
        return None
    (layer,), (outside,) = layers, others
    cached = workload.prompt_tokens + 1 if attended is None else attended
    covered = (
        layer.prompt_tokens[0] <= workload.prompt_tokens <= layer.prompt_tokens[-1]
        and layer.cache_tokens[0] <= cached <= layer.cache_tokens[-1]
    )
    return (layer, outside) if covered else None


def _from_tables(
    table: LayerTable, outside: OutsideTable, layers: Sequence[_Layer], workload: Workload, attended: float | None
) -> tuple[float, float]:
    """Seconds of the prefill, and of one step."""
    prompt = workload.prompt_tokens
    prefill = _between(outside.prompt_tokens, outside.prefill_ms, prompt) + outside.vision_ms
    decode = outside.decode_ms
    for x in layers:
        at_width = [_between(table.ffn_widths, row, x.width) for row in table.prefill_ms]
        prefill += _between(table.prompt_tokens, at_width, prompt)
        if attended is not None:
            at_width = [_between(table.ffn_widths, row, x.width) for row in table.decode_ms]
            decode += _between(table.cache_tokens, at_width, attended)
    return prefill / 1e3, decode / 1e3


def _between(axis: Sequence[int], values: Sequence[float], x: float) -> float:
    """On the straight line between the two nearest points of `axis`; the outermost values beyond it."""
    if x <= axis[0]:
        return values[0]
    for left, right, low, high in zip(axis, axis[1:], values, values[1:], strict=False):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return values[-1]
