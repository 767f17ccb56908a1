"""`lop sparsify`: single weights of a checkpoint set to zero, from files to files.

Nothing is removed: every tensor keeps its shape and its bytes, so that the result loads wherever the source does, dense
or cut by lop, and is neither smaller nor faster there. Runtimes with kernels for sparse weights (2:4) gain from it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.headers import StoredTensor
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE
from pruning.cutting.pruned_config import SPARSITY_KEY, write_rewritten_config
from pruning.cutting.reconstruct_checkpoint import CountedBatches
from pruning.cutting.rewriting.block_files import BlockFiles
from pruning.cutting.rewriting.blocks import Block, Part, vision_blocks
from pruning.cutting.rewriting.card import base_of_source, how_to_load, write_rewritten_card
from pruning.cutting.rewriting.rewriter import rewrite_blocks
from pruning.cutting.rewriting.source import SPARSITY_REPORT, SourceCheckpoint, read_source
from pruning.cutting.rewriting.sparsifier import LocalStep, Sparsifier, StepInputs
from pruning.cutting.rewriting.sparsity import Pattern
from pruning.cutting.streaming.place import check_place
from pruning.cutting.streaming.rewriting import rewrite_checkpoint
from pruning.errors import InputError
from pruning.forward.layer_source import CheckpointLayers
from pruning.forward.tensor_store import DEFAULT_RESIDENT_BYTES

if TYPE_CHECKING:
    import torch


class Modules(StrEnum):
    """Whose projections are sparsified."""

    LANGUAGE = "language"
    VISION = "vision"
    ALL = "all"

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(Part) if self is Modules.ALL else (Part(self.value),)


@dataclass(frozen=True)
class Sparsity:
    """What is asked for.

    Attributes:
        step: the local step.
        density: share of all weights in question that stays.
        ratios: what densities of layers come from, for the record: a method's name and its settings.
        pattern: N:M for all layers; then `density` is its own.
        modules: whose projections.
        inputs: what layers' weights are chosen by.
    """

    step: LocalStep
    density: float
    ratios: Mapping[str, Any]
    pattern: Pattern | None = None
    modules: Modules = Modules.LANGUAGE
    inputs: StepInputs = StepInputs.REWRITTEN

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise InputError("a density is over 0 and at most 1", values=f"{self.density:g}")

    def document(self, calibration_id: str) -> dict[str, Any]:
        """As JSON."""
        # Said where it is not as ever: runs of before are gone on with.
        inputs = {} if self.inputs is StepInputs.REWRITTEN else {"inputs": self.inputs.value}
        return {
            "step": self.step.value,
            "density": self.density,
            "ratios": dict(self.ratios),
            "pattern": None if self.pattern is None else str(self.pattern),
            "modules": self.modules.value,
            "calibration": calibration_id,
            **inputs,
        }


Densities = Callable[[Sequence[Block]], Mapping[str, float]]
"""Of each projection of the blocks, by its weight's name, the share that stays."""


def alike_within(blocks: Sequence[Block], densities: Sequence[float]) -> dict[str, float]:
    """Of all projections of a block its own of `densities`, by their weights' names."""
    return {x.name: own for block, own in zip(blocks, densities, strict=True) for x in block.projections}


def uniform_densities(density: float) -> Densities:
    """The same for all."""
    return lambda blocks: alike_within(blocks, [density] * len(blocks))


@dataclass(frozen=True)
class SparsityReport:
    """What became of the checkpoint.

    Attributes:
        document: as it is written to SPARSITY_REPORT.
        notes: of each projection, by its weight's name.
    """

    document: dict[str, Any]
    notes: dict[str, dict[str, Any]]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Of each block with projections: its part, its layer, its density and its projections."""
        found: list[dict[str, Any]] = self.document["layers"]
        return found

    @property
    def density(self) -> float:
        """Achieved: of the weights in question."""
        return 1.0 - float(self.document["zeroed"]) / max(int(self.document["parameters"]), 1)


def sparsify_checkpoint(
    source: str | Path,
    out: str | Path,
    sparsity: Sparsity,
    batches: CountedBatches,
    calibration_id: str,
    device: "torch.device",
    *,
    densities: Densities | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    base_model: str | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
    resident_bytes: int = DEFAULT_RESIDENT_BYTES,
) -> SparsityReport:
    """Write the checkpoint in `source`, sparsified, to the new folder `out`; it is whole or absent.

    One layer is in memory at a time (`rewrite_blocks`). Killed or out of disk, the same call goes on after the last
    layer that was finished.

    Args:
        densities: asked once, if the run has not got them from an earlier one; by default the same for all layers.
        base_model: the dense model's id on the hub, for the model card.

    Raises:
        CheckpointError, UnsupportedModelError: the source cannot be used (as `read_source`), or the output not written.
        InputError: no pictures for vision layers, a pattern that does not divide inputs, a `base_model` that is no id.
    """
    source, out = Path(source), Path(out)
    check_place(out, source=source)
    own = read_source(source)
    base = base_of_source(source, base_model, is_cut=own.is_cut)
    if Part.LANGUAGE in sparsity.modules.parts:
        _check(sparsity, own.language)
    recipe = sparsity.document(calibration_id)
    reports: list[SparsityReport] = []

    def make(folder: Path) -> Mapping[str, StoredTensor]:
        layers, files = CheckpointLayers(source, device), BlockFiles(folder)
        vision, language = _blocks(sparsity.modules, layers, own)
        _check(sparsity, vision)
        blocks = (*vision, *language)
        asked = densities or uniform_densities(sparsity.density)
        found = files.decided(lambda: dict(asked(blocks)))
        sparsifier = Sparsifier(sparsity.step, found, sparsity.pattern, sparsity.inputs)
        rewrite_blocks(
            layers,
            vision,
            language,
            sparsifier,
            files,
            batches,
            num_rows=batches.num_rows,
            on_batch=on_batch,
            resident_bytes=resident_bytes,
        )
        reports.append(_report(recipe, blocks, found, files, own.parameters))
        return files.stored()

    def write_rest(folder: Path) -> None:
        document = reports[0].document
        short = {name: document[name] for name in (*recipe, "parameters", "zeroed")}
        own.copy_records(folder)
        write_rewritten_config(source, folder, own.headers, {SPARSITY_KEY: short})
        write_rewritten_card(folder, base, "sparsified", _card_lines(reports[0], is_cut=own.is_cut))
        (folder / SPARSITY_REPORT).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    rewrite_checkpoint(
        source,
        out,
        own.stored,
        own.headers,
        json.dumps({"sparsify": recipe}, sort_keys=True),
        make=make,
        write_rest=write_rest,
        max_shard_size=max_shard_size,
        what="sparsified checkpoint",
        on_bytes=on_bytes,
    )
    return reports[0]


def _blocks(
    modules: Modules, layers: CheckpointLayers, source: SourceCheckpoint
) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    vision: tuple[Block, ...] = ()
    if Part.VISION in modules.parts:
        vision = vision_blocks(layers.model, source.stored)
        if not vision:
            raise InputError(
                "only a model with a vision tower has vision layers",
                values=f"--modules {modules}, a {source.model_type} model",
                remedy="Choose --modules language",
            )
    return vision, source.language if Part.LANGUAGE in modules.parts else ()


def _check(sparsity: Sparsity, blocks: Sequence[Block]) -> None:
    if sparsity.pattern is not None:
        for block in blocks:
            for projection in block.projections:
                sparsity.pattern.check(f"{projection.inside} of {block}", projection.shape[1])


def _report(
    recipe: Mapping[str, Any],
    blocks: Sequence[Block],
    densities: Mapping[str, float],
    files: BlockFiles,
    model_parameters: int,
) -> SparsityReport:
    notes, layers = files.notes(), []
    for block in filter(lambda x: x.projections, blocks):
        own = {x.inside: notes[x.name] for x in block.projections}
        zeroed = sum(note["zeroed"] for note in own.values())
        layers.append(
            {
                "part": block.part.value,
                "layer": block.index,
                "wished_density": sum(densities[x.name] * x.parameters for x in block.projections) / block.parameters,
                "density": 1.0 - zeroed / block.parameters,
                "projections": own,
            }
        )
    document = {
        **recipe,
        "parameters": sum(block.parameters for block in blocks),
        "zeroed": sum(note["zeroed"] for note in notes.values()),
        "removed": 0,
        "model_parameters": model_parameters,
        "layers": layers,
    }
    return SparsityReport(document, notes)


def _card_lines(report: SparsityReport, *, is_cut: bool) -> list[str]:
    found = report.document
    ratios = found["ratios"].get("name", "uniform")
    how = f"pattern {found['pattern']}" if found["pattern"] else f"{ratios} ratios"
    lines = [
        f"{found['zeroed']:,} of {found['parameters']:,} weights of projections ({found['modules']}) are zero,",
        f"{1 - report.density:.1%}, chosen by {found['step']}, {how}"
        + (", by the inputs of the dense model." if "inputs" in found else "."),
        "",
        "Zeroed, not removed: files, memory and speed are those of the model before, unless a runtime has kernels for",
        f"sparse weights. {how_to_load(is_cut=is_cut, is_packed=False)}",
        "",
        "| part | layer | weights that are not zero |",
        "|---|---|---|",
    ]
    lines += [f"| {x['part']} | {x['layer']} | {x['density']:.1%} |" for x in report.layers]
    return [*lines, "", f"Calibration: `{found['calibration']}`. All figures: [{SPARSITY_REPORT}]({SPARSITY_REPORT})."]
