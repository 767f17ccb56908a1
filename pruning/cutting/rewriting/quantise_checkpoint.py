"""`lop quantise`: the projections of decoder layers in four or eight bits, from files to files.

The output is in compressed-tensors' format "pack-quantized", which transformers and vLLM read, with a group of its
config for each number of bits. Embeddings, output head, norms, vision tower and projector stay as they are. What lop
cut is quantised as it stands; what `lop sparsify` zeroed stays zero.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.headers import StoredTensor
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE, tensor_bytes
from pruning.cutting.packed_config import layer_pattern, names_elsewhere, quantization_document
from pruning.cutting.pruned_config import write_rewritten_config
from pruning.cutting.reconstruct_checkpoint import CountedBatches
from pruning.cutting.rewriting.block_files import BlockFiles
from pruning.cutting.rewriting.blocks import Block, Projection
from pruning.cutting.rewriting.card import base_of_source, how_to_load, write_rewritten_card
from pruning.cutting.rewriting.quantisation import GROUPS, IntFormat
from pruning.cutting.rewriting.quantiser import Quantiser, Rounding, packed_headers
from pruning.cutting.rewriting.rewriter import rewrite_blocks
from pruning.cutting.rewriting.source import read_source
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

    def layer_bits(self, num_layers: int) -> tuple[int, ...]:
        """[L]; raises InputError if there are not as many."""
        bits = self.bits * num_layers if len(self.bits) == 1 else self.bits
        if len(bits) != num_layers:
            raise InputError(
                "bits are one number for all decoder layers, or one for each",
                values=f"{len(bits)} numbers, {num_layers} layers",
            )
        return bits

    def formats(self, blocks: Sequence[Block], *, is_cut: bool = False) -> dict[str, IntFormat]:
        """By the names of weights.

        Those of a cut model whose inputs come in whole groups of no size have none: how many channels a layer keeps
        was decided without them, and it would be lost work to cut and recover all over again.

        Raises InputError if there are not as many numbers as layers, or a width is no whole groups.
        """
        found = {}
        for block, own in zip(blocks, self.layer_bits(len(blocks)), strict=True):
            form = IntFormat(own, self.group)
            for projection in block.projections:
                if is_cut and not _comes_in_groups(projection):
                    continue
                form.check(f"{projection.inside} of {block}", projection.shape[1])
                found[projection.name] = form
        if not found:
            raise InputError(
                f"inputs must come in whole groups of {', '.join(map(str, GROUPS))}",
                values="those of no projection do",
                remedy="Plan with `--round-to 32`",
            )
        return found


def _comes_in_groups(projection: Projection) -> bool:
    return any(projection.shape[1] % size == 0 for size in GROUPS)


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

    Whole or absent, one layer in memory at a time, gone on with where it was stopped, as `sparsify_checkpoint`. The
    source may be cut: of what is skipped there is nothing to round, and what `Quantisation.formats` leaves out stays in
    its own type, as `plain` in the report says. Weights that are zero in a sparsified source stay zero.

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
    own = read_source(source)
    base = base_of_source(source, base_model, is_cut=own.is_cut)
    formats = asked.formats(own.language, is_cut=own.is_cut)
    projections = [x for block in own.language for x in block.projections]
    plain = [x for x in projections if x.name not in formats]
    if asked.rounding is Rounding.GPTQ and batches is None:
        raise InputError("GPTQ needs calibration data", remedy="Give --data, or choose --method rtn")
    headers = dict(own.headers)
    dense_bytes = sum(tensor_bytes(*header[1:]) for header in headers.values())
    for projection in projections:
        if projection.name in formats:
            del headers[projection.name]
            headers |= packed_headers(projection, formats[projection.name])
    recipe: dict[str, Any] = {
        "method": asked.rounding.value,
        "bits": list(asked.layer_bits(len(own.language))),
        "group": asked.group,
        "calibration": calibration_id,
    }
    if own.sparsity is not None:
        recipe["zeros"] = "kept"
    report: dict[str, Any] = {
        **recipe,
        "weights_bytes": sum(tensor_bytes(*header[1:]) for header in headers.values()),
        "dense_bytes": dense_bytes,
    }
    if plain:
        report["plain"] = {x.name: x.shape[1] for x in plain}
    config: dict[str, Any] = {}

    def make(folder: Path) -> Mapping[str, StoredTensor]:
        layers, files = CheckpointLayers(source, device), BlockFiles(folder)
        config.update(quantization_config(own.language, formats, layers.model))
        rewrite_blocks(
            layers,
            (),
            [replace(x, projections=tuple(p for p in x.projections if p.name in formats)) for x in own.language],
            Quantiser(asked.rounding, formats, sees=batches is not None, keeps_zeros=own.sparsity is not None),
            files,
            batches,
            num_rows=0 if batches is None else batches.num_rows,
            on_batch=on_batch,
            resident_bytes=resident_bytes,
        )
        report["projections"] = files.notes()
        return files.stored()

    def write_rest(folder: Path) -> None:
        own.copy_records(folder)
        write_rewritten_config(source, folder, own.headers, {"quantization_config": config})
        write_rewritten_card(folder, base, "quantised", _card_lines(report, is_cut=own.is_cut))
        (folder / REPORT_NAME).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    rewrite_checkpoint(
        source,
        out,
        own.stored,
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
    """What config.json says of it: a group for each number of bits, of the layers that have it; projections without a
    format are left alone by name."""
    layers: dict[tuple[IntFormat | None, tuple[str, ...]], list[int]] = {}
    for block in blocks:
        for form in dict.fromkeys(formats.get(x.name) for x in block.projections):
            names = tuple(x.inside for x in block.projections if formats.get(x.name) == form)
            layers.setdefault((form, names), []).append(block.index)
    targets: dict[tuple[int, int], list[str]] = {}
    plain: list[str] = []
    for (form, names), indices in layers.items():
        pattern = layer_pattern(indices, names)
        (plain if form is None else targets.setdefault((form.bits, form.group), [])).append(pattern)
    everything = [x.removeprefix("re:") for own in targets.values() for x in own]
    return quantization_document(targets, [*names_elsewhere(model, everything), *plain])


def _card_lines(report: Mapping[str, Any], *, is_cut: bool) -> list[str]:
    bits = sorted(set(report["bits"]))
    data = f"Calibration: `{report['calibration']}`. " if report["calibration"] else ""
    plain = report.get("plain", {})
    return [
        f"The projections of decoder layers in {' and '.join(map(str, bits))} bits, with a scale for every",
        f"{report['group']} inputs, rounded by {report['method']}: {report['weights_bytes']:,} bytes of weights",
        f"instead of {report['dense_bytes']:,}. {how_to_load(is_cut=is_cut, is_packed=True)}",
        *([f"{len(plain)} projections, whose inputs come in no whole groups, are as they were."] if plain else []),
        *(["Weights that were zero still are."] if "zeros" in report else []),
        "",
        f"{data}All figures: [{REPORT_NAME}]({REPORT_NAME}).",
    ]
