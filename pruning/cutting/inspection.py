"""What a checkpoint folder holds, layer by layer, from its config, its headers and its plan: no weight is read (of
weights in few bits, their shapes and scales are)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.anatomy.dtypes import FLOAT_DTYPES
from pruning.anatomy.families import Family, family_of
from pruning.anatomy.layer_config import recorded_architecture
from pruning.anatomy.tensor_roles import decoder_tensor
from pruning.anatomy.vllm_support import SERVED_WEIGHTS, family_limits, untried_weights
from pruning.checkpoints.anatomy_reader import layer_shapes, load_config
from pruning.checkpoints.file_errors import reading
from pruning.checkpoints.headers import StoredTensor, stored_tensors, weight_files
from pruning.checkpoints.loading import PLAN_NAME
from pruning.checkpoints.output_head import needed_tensors
from pruning.checkpoints.packed_tensors import StoredPacked, is_packed_part, packed_in
from pruning.checkpoints.resizing import biased_layers
from pruning.cutting.base_model import BaseModel, base_of
from pruning.cutting.gguf.exportable import exportable
from pruning.cutting.pruned_config import SPARSITY_KEY
from pruning.planning.plan import PruningPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class InspectedLayer:
    """What one decoder layer has, and had in the dense model; 0: it is skipped.

    Bits are those of the weights in it that have fewest; None where all are stored in their dtype.
    """

    index: int
    ffn_width: int
    dense_ffn_width: int
    kv_groups: int
    dense_kv_groups: int
    has_added_bias: bool
    ffn_bits: int | None = None
    attention_bits: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What a folder says of itself.

    Attributes:
        family: `model_type` of the language model.
        base: the model that it was made from, as its card says; of a dense folder, itself.
        is_pruned: whether layers have sizes of their own, or a plan lies there.
        plan: the one in the folder; None: there is none (it was saved again, or is dense).
        parameters, weights_bytes: of the whole model.
        layers: [L].
        sparsity: how single weights were zeroed, as `lop sparsify` notes it in the config; None: it was not.
        runs_in: what can load or export it; empty if nobody asked.
        refused_by: who refuses it, and why.
    """

    model_type: str
    family: str
    base: BaseModel
    is_pruned: bool
    plan: PruningPlan | None
    parameters: int
    weights_bytes: int
    layers: tuple[InspectedLayer, ...]
    runs_in: tuple[str, ...] = ()
    refused_by: tuple[str, ...] = ()
    sparsity: Mapping[str, Any] | None = None


def inspect_checkpoint(folder: str | Path, *, reads_plan: bool = True, asks_runtimes: bool = True) -> Inspection:
    """Read what `folder` says of itself; without `reads_plan`, as if no plan could be read there. `asks_runtimes`: also
    what runs it, for which its tokenizer is read.

    Raises:
        CheckpointError: it is no checkpoint, damaged or half-written.
        UnsupportedModelError: its family is not in the table, or its layers differ in something else.
        PlanError: the plan in it cannot be read.
    """
    folder = Path(folder)
    stored = stored_tensors(folder)
    config = load_config(folder)
    text = config.get_text_config(decoder=True)
    family_of(text)
    recorded = recorded_architecture(config)
    has_plan = (folder / PLAN_NAME).is_file()
    plan = PruningPlan.load(folder / PLAN_NAME) if has_plan and reads_plan else None
    is_pruned = recorded is not None or has_plan
    dense = layer_shapes(config)
    architecture = recorded or Architecture()
    widths = architecture.units(Sublayer.FFN, [layer.ffn_width for layer in dense])
    groups = architecture.units(Sublayer.ATTENTION, [layer.num_kv_groups for layer in dense])
    biased = biased_layers(config, stored) if plan is not None and plan.compensates else set[int]()
    packed = packed_in(stored)
    needed = [x for name, x in needed_tensors(config, stored).items() if not is_packed_part(name, packed)]
    bits = _bits_of_sites(packed, family_of(text))
    runtimes = _runtimes(folder, config, stored, alike=recorded is None) if asks_runtimes else ((), ())
    with reading(folder):
        weights_bytes = sum(path.stat().st_size for path in weight_files(folder))
    return Inspection(
        model_type=str(config.model_type),
        family=str(text.model_type),
        base=base_of(folder, plan, is_pruned=is_pruned),
        is_pruned=is_pruned,
        plan=plan,
        parameters=sum(math.prod(tensor.shape) for tensor in needed if tensor.dtype in FLOAT_DTYPES)
        + sum(weight.parameters for weight in packed.values()),
        weights_bytes=weights_bytes,
        layers=tuple(
            InspectedLayer(
                x.index,
                width,
                x.ffn_width,
                kept,
                x.num_kv_groups,
                x.index in biased,
                bits.get(Site(x.index, Sublayer.FFN)),
                bits.get(Site(x.index, Sublayer.ATTENTION)),
            )
            for x, width, kept in zip(dense, widths, groups, strict=True)
        ),
        runs_in=runtimes[0],
        refused_by=runtimes[1],
        sparsity=_sparsity(config),
    )


def _sparsity(config: "PreTrainedConfig") -> Mapping[str, Any] | None:
    """What the config says of zeroed weights; what is no note of `lop sparsify` says nothing."""
    said = getattr(config, SPARSITY_KEY, None)
    kinds = {"zeroed": int, "parameters": int, "step": str}
    is_note = isinstance(said, dict) and all(type(said.get(name)) is kind for name, kind in kinds.items())
    return said if is_note else None


def _bits_of_sites(packed: Mapping[str, StoredPacked], family: Family) -> dict[Site, int]:
    found: dict[Site, int] = {}
    for name, weight in packed.items():
        if (place := decoder_tensor(name)) is not None and (sublayer := family.sublayer_of(place[1])) is not None:
            site = Site(place[0], sublayer)
            found[site] = min(weight.bits, found.get(site, weight.bits))
    return found


def _runtimes(
    folder: Path, config: "PreTrainedConfig", stored: Mapping[str, StoredTensor], *, alike: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What loads or exports the checkpoint, and who refuses it; `alike`: all layers have the dense model's sizes."""
    runtimes, refusals = ["lop.load_pruned", "transformers, after lop.register_transformers()"], []
    sections = (config, config.get_text_config(decoder=True))
    is_quantised = any(getattr(section, "quantization_config", None) is not None for section in sections)
    if is_quantised:
        reads = "where the packages that read its quantization_config are installed"
        runtimes = [f"{runtime}, {reads}" for runtime in (["transformers and vLLM"] if alike else runtimes)]
    elif alike:
        runtimes = ["transformers, vLLM and whatever runs the dense model"]
    if not alike:
        untried = untried_weights(config)
        if untried is None:
            runtimes.append(f"vLLM with lop-vllm installed beside it{family_limits(str(config.model_type))}")
        else:
            refusals.append(f"lop-vllm: {untried}; it serves {SERVED_WEIGHTS}")
    export = exportable(folder, config, stored)
    if export.refusal is not None:
        refusals.append(f"lop export gguf: {export.refusal}")
    else:
        context = "" if export.context is None else f" --context {export.context}"
        filled = ", layers filled up to one size" if export.is_filled_up else ""
        runtimes.append(f"llama.cpp, by lop export gguf{context}{filled}")
    return tuple(runtimes), tuple(refusals)
