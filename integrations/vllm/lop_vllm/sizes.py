"""What follows from the sizes and the weights of the layers; nothing of vLLM is needed for it."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.anatomy.vllm_support import SERVED_WEIGHTS, untried_weights
from pruning.errors import InputError, UnsupportedModelError


def check_parallel_sizes(
    architecture: Architecture,
    dense: Sequence[DecoderLayer],
    *,
    tensor_parallel: int,
    pipeline_parallel: int = 1,
    fused: bool = False,
) -> None:
    """Every layer [L] must split into `tensor_parallel` equal parts: its FFN channels and its KV groups.

    KV groups go whole, with their query heads. `fused` families (Phi-3) hold several kinds of rows in one projection,
    which vLLM's transformers backend does not split.

    Raises InputError that names the first layer that does not divide, and the sizes that divide all.
    """
    if pipeline_parallel > 1:
        raise InputError(
            "pruned checkpoints are served without pipeline parallelism",
            values=f"--pipeline-parallel-size {pipeline_parallel}",
            remedy="Use --tensor-parallel-size",
        )
    if tensor_parallel == 1:
        return
    if fused:
        raise InputError(
            "families with fused projections are served on one device",
            values=f"--tensor-parallel-size {tensor_parallel}",
            remedy="Leave --tensor-parallel-size out",
        )
    sizes = list(kept_units(architecture, dense))
    wrong = next((x for x in sizes if x[2] % tensor_parallel), None)
    if wrong is None:
        return
    layer, what, units = wrong
    good = [n for n in range(1, tensor_parallel) if not any(size % n for *_, size in sizes)]
    raise InputError(
        "--tensor-parallel-size must divide the FFN channels and the KV groups of every layer",
        values=f"{tensor_parallel}, layer {layer} has {units} {what}",
        remedy=f"Sizes below it that do: {', '.join(map(str, good))}",
    )


def check_weights(config: Any, tensor_parallel: int) -> None:
    """Raises UnsupportedModelError if a pruned model's weights are in few bits in a way that was not tried in vLLM."""
    untried = untried_weights(config)
    quantisation = getattr(config, "quantization_config", None)
    if untried is None and quantisation and tensor_parallel > 1:
        untried = f"weights in few bits and --tensor-parallel-size {tensor_parallel}"
    if untried is not None:
        raise UnsupportedModelError(
            f"of pruned checkpoints vLLM serves {SERVED_WEIGHTS}, these on one device",
            values=untried,
            remedy="Cut without rounding (lop apply --method none), or load the folder with lop.load_pruned",
        )


def kept_units(architecture: Architecture, dense: Sequence[DecoderLayer]) -> Iterator[tuple[int, str, int]]:
    """(layer, what, units) of every sub-layer that is not skipped."""
    for half, what, full in (
        (Sublayer.FFN, "FFN channels", [x.ffn_width for x in dense]),
        (Sublayer.ATTENTION, "KV groups", [x.num_kv_groups for x in dense]),
    ):
        for layer, units in enumerate(architecture.units(half, full)):
            if units:
                yield layer, what, units


def attention_runs(architecture: Architecture, num_layers: int) -> list[range]:
    """The longest runs of layers that all have attention."""
    skipped = {site.layer for site, option in architecture.items if _skips_attention(site, option)}
    runs = []
    for has_attention, layers in groupby(range(num_layers), lambda layer: layer not in skipped):
        if has_attention:
            first, *rest = layers
            runs.append(range(first, (rest[-1] if rest else first) + 1))
    return runs


def _skips_attention(site: Site, option: Option) -> bool:
    return site.sublayer is Sublayer.ATTENTION and option.units == 0
