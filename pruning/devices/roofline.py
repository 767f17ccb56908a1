"""Latency where nothing was measured: the roofline model (Williams, Waterman & Patterson 2009, CACM 52(4)).

A phase of a layer takes as long as its operations at the device's peak, or as its bytes at the memory's bandwidth,
whichever is longer. That is a lower bound with peaks from a data sheet; `COMPUTE_FRACTION` and `BANDWIDTH_FRACTION`
say what part of them is assumed to be reachable. The result is an estimate, never a measurement.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Option, Site, Sublayer
from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.arrays import FloatArray, IntArray
from pruning.devices.device import Device
from pruning.devices.layered import LayeredLatency, Phases
from pruning.errors import InputError
from pruning.planning import prices
from pruning.planning.activations import vision_patches
from pruning.planning.latency_model import LatencySource, mean_cache_tokens
from pruning.planning.space import Options
from pruning.planning.workload import Workload

COMPUTE_FRACTION = 0.6
"""Of a data sheet's peak, in prefill. An assumption: Pope et al. (2022, arXiv 2211.05102) report up to 76% for large
batches on TPU v4, and training runs on GPUs reach 40 to 60%."""

BANDWIDTH_FRACTION = 0.7
"""Of a data sheet's bandwidth, in decoding. An assumption: serving systems are commonly reported at 60 to 85%."""


@dataclass(frozen=True)
class Outside:
    """What lies outside of the decoder layers, as far as an anatomy knows it, in parameters.

    `head` is the matrix [vocabulary, D]; `vision` is all that is neither layer, embedding nor head: vision tower,
    projector and final norm. `patches` are the positions of an image in the tower, 0 if the anatomy does not tell.
    """

    head: int
    vision: int
    patches: int

    @classmethod
    def of(cls, anatomy: ModelAnatomy) -> "Outside":
        head = anatomy.vocab_size * anatomy.hidden_size
        matrices = sum(t.shape == (anatomy.vocab_size, anatomy.hidden_size) for t in anatomy.tensors)
        outside = anatomy.total_parameters - anatomy.decoder_parameters
        # One matrix where embedding and head are tied, or where the anatomy lists no tensors.
        return cls(head, max(outside - max(matrices, 1) * head, 0), vision_patches(anatomy))


class RooflineLatency(LayeredLatency):
    """The roofline of `device` for `anatomy`'s layers, with any units.

    Counted: in each layer the weights and norms that it keeps once a pass, for each KV group attention over the
    positions attended to, its keys and values read once; the head once a generated token; embedding rows; in the
    prefill vision tower and projector, one image a sequence, each weight once a patch. Weights in fewer bits move fewer
    bytes; operations are those of the dtype.

    Not counted: activations between operations, attention inside the vision tower, and the time to start a kernel. Of
    towers without a table of positions (Qwen2-VL's, whose images have any size) only the weights' bytes are.
    """

    source = LatencySource.ROOFLINE
    times_bits = True

    def __init__(self, device: Device, anatomy: ModelAnatomy, workload: Workload) -> None:
        super().__init__(anatomy, workload)
        self._anatomy = anatomy
        self._parameters = prices.parameters(anatomy)
        self._outside = Outside.of(anatomy)
        self._element_bytes = DTYPE_BYTES[anatomy.dtype]
        # A profile's figures are what the machine did, not what a data sheet promises.
        compute, bandwidth = (1.0, 1.0) if device.is_measured else (COMPUTE_FRACTION, BANDWIDTH_FRACTION)
        self._flops_per_s = device.peak_flops_of(anatomy.dtype) * compute
        self._bytes_per_s = device.bandwidth_bytes_per_s * bandwidth
        self.description = (
            f"estimated, not measured: roofline of {device.name} at {self._flops_per_s / 1e12:.4g} TFLOP/s "
            f"{anatomy.dtype} and {self._bytes_per_s / 1e9:.4g} GB/s "
            + (
                f"({device.source})"
                if device.is_measured
                else f"({compute:.0%} and {bandwidth:.0%} of {device.source})"
            )
            + ("" if self._outside.patches else "; the vision tower's operations are not counted")
        )

    def layer_phases_ns(self, layer: int, widths: IntArray, saved: IntArray | None = None) -> Phases:
        spec = self._anatomy.layers[layer]
        dense = np.float64(spec.parameters)
        parameters = dense - (spec.ffn_width - widths.astype(np.float64)) * spec.ffn_parameters_per_channel
        return self._pass_ns(layer, parameters, np.full(len(widths), float(spec.num_kv_groups)), saved)

    def packed_phases_ns(self, site: Site, units: IntArray, saved: IntArray) -> Phases:
        # As `site_phases_ns`: a half takes what the layer takes beyond the other, whose weights are as they are.
        if site.sublayer is Sublayer.ATTENTION:
            nothing = self.attention_phases_ns(site.layer, np.zeros(1, dtype=np.int64))
            own = self.attention_phases_ns(site.layer, units, saved)
        else:
            dense = np.array([self._anatomy.layers[site.layer].num_kv_groups], dtype=np.int64)
            nothing = self.attention_phases_ns(site.layer, dense)
            own = self.layer_phases_ns(site.layer, np.maximum(units, 1), saved)
        return tuple(np.where(units > 0, x - without[0], 0) for x, without in zip(own, nothing, strict=True))  # type: ignore[return-value]

    def attention_phases_ns(self, layer: int, groups: IntArray, saved: IntArray | None = None) -> Phases:
        # What no half takes along stays: norms that the two share, and all but channels of an anatomy without tensors.
        attention, ffn = Site(layer, Sublayer.ATTENTION), Site(layer, Sublayer.FFN)
        dense = self._parameters.of_dense
        shared = self._anatomy.layers[layer].parameters - dense[attention] - dense[ffn]
        parameters = (shared + self._parameters.of(attention, Options(groups))).astype(np.float64)
        return self._pass_ns(layer, parameters, groups.astype(np.float64), saved)

    def outside_phases_ns(self) -> tuple[int, int]:
        outside = self._outside
        batch = float(self.workload.batch)
        head_flops = 2.0 * outside.head * batch
        embedded = self._anatomy.hidden_size * batch
        prefill = self._seconds(head_flops, outside.head + embedded * self.workload.prompt_tokens)
        vision = self._seconds(2.0 * outside.vision * outside.patches * batch, float(outside.vision))
        decode = self._seconds(head_flops, outside.head + embedded)
        first, further = self.nanoseconds(np.array([prefill + vision, decode]))
        return int(first), int(further)

    def kind_of(self, site: Site) -> Hashable:
        layer = self._anatomy.layers[site.layer]
        parameters = layer.parameters, self._parameters.of_dense[site], self._parameters.cost_of(site, Option(1))
        return *parameters, layer.ffn_width, layer.num_kv_groups, layer.num_heads, layer.head_dim, site.sublayer

    def untimed(self) -> InputError:
        raise AssertionError("a roofline knows all layers")

    def _pass_ns(self, layer: int, parameters: FloatArray, groups: FloatArray, saved: IntArray | None = None) -> Phases:
        """[K] of each phase: through `parameters` [K] of a layer, which take `saved` [K] bytes less than in their own
        dtype, and attention with KV `groups` [K]."""
        spec, batch = self._anatomy.layers[layer], float(self.workload.batch)

        def seconds(tokens: float, attended: float, cached: float) -> FloatArray:
            """Of one pass: `tokens` positions a sequence go through, `attended` pairs, `cached` positions."""
            pairs = 4.0 * groups * spec.heads_per_group * spec.head_dim * attended
            flops = batch * (2.0 * parameters * tokens + pairs)
            elements = parameters + batch * 2.0 * groups * spec.head_dim * cached
            moved = elements * self._element_bytes - (0 if saved is None else saved)
            return np.maximum(flops / self._flops_per_s, moved / self._bytes_per_s)

        prompt, cached = float(self.workload.prompt_tokens), mean_cache_tokens(self.workload)
        prefill = seconds(prompt, attended=prompt * (prompt + 1) / 2, cached=prompt)
        return self.nanoseconds(prefill), self.nanoseconds(seconds(1.0, attended=cached, cached=cached))

    def _seconds(self, flops: float, elements: float) -> float:
        return max(flops / self._flops_per_s, elements * self._element_bytes / self._bytes_per_s)
