"""Latency where nothing was measured: the roofline model (Williams, Waterman & Patterson 2009, CACM 52(4)).

A phase of a layer takes as long as its operations at the device's peak, or as its bytes at the memory's bandwidth,
whichever is longer. That is a lower bound with peaks from a data sheet; `COMPUTE_FRACTION` and `BANDWIDTH_FRACTION`
say what part of them is assumed to be reachable. The result is an estimate, never a measurement.
"""

from dataclasses import dataclass

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.dtypes import DTYPE_BYTES
from pruning.arrays import FloatArray, IntArray
from pruning.devices.device import Device
from pruning.planning.activations import vision_patches
from pruning.planning.latency_model import LatencyModel, LatencySource, mean_cache_tokens
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


class RooflineLatency(LatencyModel):
    """The roofline of `device` for `anatomy`'s layers, at any width.

    Counted: in each layer all weights once a pass, attention over the positions attended to, keys and values read
    once; the head once a generated token; embedding rows; in the prefill vision tower and projector, one image a
    sequence, each weight once a patch.

    Not counted: activations between operations, attention inside the vision tower, and the time to start a kernel. Of
    towers without a table of positions (Qwen2-VL's, whose images have any size) only the weights' bytes are.
    """

    source = LatencySource.ROOFLINE

    def __init__(self, device: Device, anatomy: ModelAnatomy, workload: Workload) -> None:
        super().__init__(workload)
        self._anatomy = anatomy
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

    def layer_phases_ns(self, layer: int, widths: IntArray) -> tuple[IntArray, IntArray]:
        prompt = float(self.workload.prompt_tokens)
        prefill = self._layer_seconds(layer, widths, tokens=prompt, attended=prompt * (prompt + 1) / 2, cached=prompt)
        cached = mean_cache_tokens(self.workload)
        decode = self._layer_seconds(layer, widths, tokens=1.0, attended=cached, cached=cached)
        return self.nanoseconds(prefill), self.nanoseconds(decode)

    def fixed_phases_ns(self) -> tuple[int, int]:
        outside = self._outside
        batch = float(self.workload.batch)
        head_flops = 2.0 * outside.head * batch
        embedded = self._anatomy.hidden_size * batch
        prefill = self._seconds(head_flops, outside.head + embedded * self.workload.prompt_tokens)
        vision = self._seconds(2.0 * outside.vision * outside.patches * batch, float(outside.vision))
        decode = self._seconds(head_flops, outside.head + embedded)
        first, further = self.nanoseconds(np.array([prefill + vision, decode]))
        return int(first), int(further)

    def _layer_seconds(
        self, layer: int, widths: IntArray, *, tokens: float, attended: float, cached: float
    ) -> FloatArray:
        """[N] seconds of one pass: `tokens` positions a sequence go through, `attended` pairs, `cached` positions."""
        spec, batch = self._anatomy.layers[layer], float(self.workload.batch)
        dense = np.float64(spec.parameters)
        parameters = dense - (spec.ffn_width - widths.astype(np.float64)) * spec.ffn_parameters_per_channel
        flops = batch * (2.0 * parameters * tokens + 4.0 * spec.num_heads * spec.head_dim * attended)
        elements = parameters + batch * 2.0 * spec.num_kv_groups * spec.head_dim * cached
        return np.maximum(flops / self._flops_per_s, elements * self._element_bytes / self._bytes_per_s)

    def _seconds(self, flops: float, elements: float) -> float:
        return max(flops / self._flops_per_s, elements * self._element_bytes / self._bytes_per_s)
