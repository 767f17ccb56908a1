"""`lop quantise`: the projections of decoder layers in four or eight bits, from files to files.

The output is in compressed-tensors' format "pack-quantized", which transformers and vLLM read, with a group of its
config for each number of bits. Embeddings, output head, norms, vision tower and projector stay as they are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import StoredTensor, stored_tensors
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE, tensor_bytes
from pruning.cutting.base_model import read_base_model
from pruning.cutting.packed_config import layer_pattern, names_elsewhere, quantization_document
from pruning.cutting.pruned_config import write_rewritten_config
from pruning.cutting.reconstruct_checkpoint import CountedBatches
from pruning.cutting.rewriting.block_files import BlockFiles
from pruning.cutting.rewriting.blocks import Block, language_blocks
from pruning.cutting.rewriting.card import write_rewritten_card
from pruning.cutting.rewriting.quantisation import IntFormat
from pruning.cutting.rewriting.quantiser import Quantiser, Rounding, packed_headers
from pruning.cutting.rewriting.rewriter import rewrite_blocks
from pruning.cutting.streaming.place import check_place
from pruning.cutting.streaming.rewriting import rewrite_checkpoint
from pruning.errors import InputError
from pruning.forward.layer_source import CheckpointLayers
from pruning.forward.tensor_store import DEFAULT_RESIDENT_BYTES
from pruning.missing_packages import needing

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

REPORT_NAME = "lop_quantisation.json"
"""In the output: how it was made, and how each projection was rounded."""


@dataclass(frozen=True)
class Quantisation:
    """What is asked for: `bits` of each decoder layer [L], or one number for all."""

    rounding: Rounding
    bits: tuple[int, ...]
    group: int

    def formats(self, blocks: Sequence[Block]) -> dict[str, IntFormat]:
        """By the names of weights; raises InputError if there are not as many, or a width is no whole groups."""
        bits = self.bits * len(blocks) if len(self.bits) == 1 else self.bits
        if len(bits) != len(blocks):
            raise InputError(
                "bits are one number for all decoder layers, or one for each",
                values=f"{len(bits)} numbers, {len(blocks)} layers",
            )
        found = {}
        for block, own in zip(blocks, bits, strict=True):
            form = IntFormat(own, self.group)
            for projection in block.projections:
                form.check(f"{projection.inside} of {block}", projection.shape[1])
                found[projection.name] = form
        return found


def quantise_checkpoint(
    source: str | Path,
    out: str | Path,
    asked: Quantisation,
    device: "torch.device",
    *,
    batches: CountedBatches | None = None,
    calibration_id: str | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    base_model: str | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
    resident_bytes: int = DEFAULT_RESIDENT_BYTES,
) -> dict[str, Any]:
    """Write the checkpoint in `source`, quantised, to the new folder `out`; returns what REPORT_NAME holds.

    Whole or absent, one layer in memory at a time, gone on with where it was stopped, as `sparsify_checkpoint`.

    Args:
        batches: of conversations; rounding to nearest does without, and all errors weigh alike then.
        calibration_id: of those.

    Raises:
        CheckpointError, UnsupportedModelError: the source cannot be used (or is quantised), or the output not written.
        InputError: GPTQ without data, or formats that do not fit.
        MissingExtraError: compressed-tensors is not installed.
    """
    with needing("quantise"):
        import compressed_tensors  # noqa: F401

    source, out = Path(source), Path(out)
    check_place(out, source=source)
    base = read_base_model(source, base_model)
    stored = stored_tensors(source)
    anatomy = read_anatomy(source, stored)
    blocks = language_blocks(anatomy)
    formats = asked.formats(blocks)
    if asked.rounding is Rounding.GPTQ and batches is None:
        raise InputError("GPTQ needs calibration data", remedy="Give --data, or choose --method rtn")
    headers = {tensor.name: (tensor.name, tensor.shape, tensor.dtype) for tensor in anatomy.tensors}
    dense_bytes = sum(tensor_bytes(*header[1:]) for header in headers.values())
    for block in blocks:
        for projection in block.projections:
            del headers[projection.name]
            headers |= packed_headers(projection, formats[projection.name])
    recipe = {
        "method": asked.rounding.value,
        "bits": [formats[block.projections[0].name].bits for block in blocks],
        "group": asked.group,
        "calibration": calibration_id,
    }
    report: dict[str, Any] = {
        **recipe,
        "weights_bytes": sum(tensor_bytes(*header[1:]) for header in headers.values()),
        "dense_bytes": dense_bytes,
    }
    config: dict[str, Any] = {}

    def make(folder: Path) -> Mapping[str, StoredTensor]:
        layers, files = CheckpointLayers(source, device), BlockFiles(folder)
        config.update(quantization_config(blocks, formats, layers.model))
        rewrite_blocks(
            layers,
            (),
            blocks,
            Quantiser(asked.rounding, formats, sees=batches is not None),
            files,
            batches,
            num_rows=0 if batches is None else batches.num_rows,
            on_batch=on_batch,
            resident_bytes=resident_bytes,
        )
        report["projections"] = files.notes()
        return files.stored()

    def write_rest(folder: Path) -> None:
        write_rewritten_config(source, folder, anatomy, {"quantization_config": config})
        write_rewritten_card(folder, base, "quantised", _card_lines(report))
        (folder / REPORT_NAME).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    rewrite_checkpoint(
        source,
        out,
        stored,
        headers,
        json.dumps({"quantise": recipe}, sort_keys=True),
        make=make,
        write_rest=write_rest,
        max_shard_size=max_shard_size,
        what="quantised checkpoint",
        on_bytes=on_bytes,
    )
    return report


def quantization_config(
    blocks: Sequence[Block], formats: Mapping[str, IntFormat], model: "PreTrainedModel"
) -> dict[str, Any]:
    """What config.json says of it: a group for each number of bits, of the layers that have it."""
    names = [x.inside for x in blocks[0].projections]
    of_layer = {x.index: formats[x.projections[0].name] for x in blocks}
    targets = {
        (form.bits, form.group): [layer_pattern((index for index, own in of_layer.items() if own == form), names)]
        for form in formats.values()
    }
    everything = layer_pattern((x.index for x in blocks), names).removeprefix("re:")
    return quantization_document(targets, names_elsewhere(model, [everything]))


def _card_lines(report: Mapping[str, Any]) -> list[str]:
    bits = sorted(set(report["bits"]))
    data = f"Calibration: `{report['calibration']}`. " if report["calibration"] else ""
    return [
        f"The projections of decoder layers in {' and '.join(map(str, bits))} bits, with a scale for every",
        f"{report['group']} inputs, rounded by {report['method']}: {report['weights_bytes']:,} bytes of weights",
        f"instead of {report['dense_bytes']:,}. transformers loads it with `pip install compressed-tensors`.",
        "",
        f"{data}All figures: [{REPORT_NAME}]({REPORT_NAME}).",
    ]
