"""How long a request takes on a device, from the modules of a model that was built: stated anew, without product code.

A layer takes what it would without an FFN and with the KV groups that it keeps, and what its FFN adds to whole
attention. Both from a profile's tables where they cover the request: a line between the two nearest numbers of units,
then between the two nearest lengths. Else from the device's two figures: a pass takes as long as its operations at the
peak or as its bytes at the bandwidth, of which a data sheet's count 60% and 70% (docs/devices.md). In seconds and
floating point; the product counts whole nanoseconds. It rounds up, but takes the difference of two rounded times for an
FFN beside cut attention: how far it may be above and below is said too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from pruning.anatomy.decoder_view import decoder_view
from pruning.devices.device import Device
from pruning.devices.tables import LayerTable, OutsideTable
from pruning.planning.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DATA_SHEET_COMPUTE, DATA_SHEET_BANDWIDTH = 0.6, 0.7


@dataclass(frozen=True)
class BuiltLatency:
    """Of a whole request; `rounding_ms` is the most that rounding adds to it, `short_ms` the most that it takes off."""

    total_ms: float
    rounding_ms: float
    short_ms: float
    source: str


@dataclass(frozen=True)
class _Layer:
    """Sizes of a decoder layer: what projections put out, and parameters, without biases that compensation added: of
    the attention and of the FFN, each with its norm, and what is left."""

    width: int
    queries: int
    keys_and_values: int
    attention: int
    ffn: int
    shared: int


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
    whole = _dense_attention(model).keys_and_values
    differences = sum(x.width > 0 and x.keys_and_values < whole for x in layers)
    above, below = ((count * (1 + steps) + 1) / 1e6 for count in (len(layers) + 1 + differences, differences))
    return BuiltLatency((prefill + steps * decode) * 1e3, above, below if differences else 0.0, source)


def _sizes(layer: nn.Module, compensated: bool) -> _Layer:
    linear = {name.split(".")[-1]: x for name, x in layer.named_modules() if isinstance(x, nn.Linear)}
    down, query, key, value = (linear.get(name) for name in ("down_proj", "q_proj", "k_proj", "v_proj"))
    added = down.bias.numel() if compensated and down is not None and down.bias is not None else 0
    count = {name: x.numel() for name, x in layer.named_parameters()}
    attention = sum(n for name, n in count.items() if name.startswith(("self_attn.", "input_layernorm.")))
    ffn = sum(n for name, n in count.items() if name.startswith(("mlp.", "post_attention_layernorm."))) - added
    return _Layer(
        width=0 if down is None else down.in_features,
        queries=0 if query is None else query.out_features,
        keys_and_values=0 if key is None or value is None else key.out_features + value.out_features,
        attention=attention,
        ffn=ffn,
        shared=sum(count.values()) - added - attention - ffn,
    )


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

    def passes(weights: float, queries: float, cached: float) -> tuple[float, float]:
        """A prompt and a token through `weights` of a layer, and attention of projections that put out so much."""
        pairs = prompt * (prompt + 1) / 2
        return (
            seconds(batch * (2 * weights * prompt + 2 * 2 * queries * pairs), weights + batch * cached * prompt),
            seconds(batch * (2 * weights + 2 * 2 * queries * attended), weights + batch * cached * attended),
        )

    prefill = decode = 0.0
    whole = _dense_attention(model)
    for x in layers:
        times = [(1, passes(x.shared + x.attention, x.queries, x.keys_and_values))]
        if x.width:
            times.append((1, passes(x.shared + whole.attention + x.ffn, whole.queries, whole.keys_and_values)))
            times.append((-1, passes(x.shared + whole.attention, whole.queries, whole.keys_and_values)))
        for sign, (first, further) in times:
            prefill, decode = prefill + sign * first, decode + sign * further
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    inside = sum(p.numel() for layer in decoder_view(model).layers for p in layer.parameters())
    rows = head.numel() if head is embedding else head.numel() + embedding.numel()
    vision = sum(p.numel() for p in parameters) - inside - rows
    hidden = head.shape[1]
    prefill += seconds(2 * head.numel() * batch, head.numel() + hidden * batch * prompt)
    prefill += seconds(2 * vision * _patches(model) * batch, vision)
    decode += seconds(2 * head.numel() * batch, head.numel() + hidden * batch)
    return prefill, decode


def _dense_attention(model: "PreTrainedModel") -> _Layer:
    """Attention as the config's own numbers have it, from which single layers differ."""
    text = model.config.get_text_config(decoder=True)
    assert not text.attention_bias
    queries, cached = text.num_attention_heads * text.head_dim, 2 * text.num_key_value_heads * text.head_dim
    weights = text.hidden_size * (2 * queries + cached + 1)  # the norm's, too
    return _Layer(width=0, queries=queries, keys_and_values=cached, attention=weights, ffn=0, shared=0)


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
        prefill += _between(table.prompt_tokens, _of_layer(table, x, "prefill_ms"), prompt)
        if attended is not None:
            decode += _between(table.cache_tokens, _of_layer(table, x, "decode_ms"), attended)
    return prefill / 1e3, decode / 1e3


def _of_layer(table: LayerTable, x: _Layer, phase: str) -> list[float]:
    """Milliseconds of the layer at each of the table's lengths."""
    whole, without = getattr(table, phase), getattr(table.attention, phase, None)
    if without is None or table.attention is None:
        return [_between(table.ffn_widths, row, x.width) for row in whole]
    groups, axis = x.keys_and_values // (2 * table.shape.head_dim), table.attention.kv_groups
    found = []
    for row, by_groups in zip(whole, without, strict=True):
        time = by_groups[0] if groups == 0 else _between(axis[1:], by_groups[1:], groups)
        found.append(time + (0 if x.width == 0 else _between(table.ffn_widths, row, x.width) - by_groups[-1]))
    return found


def _between(axis: Sequence[int], values: Sequence[float], x: float) -> float:
    """On the straight line between the two nearest points of `axis`; the outermost values beyond it."""
    if x <= axis[0]:
        return values[0]
    for left, right, low, high in zip(axis, axis[1:], values, values[1:], strict=False):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return values[-1]
