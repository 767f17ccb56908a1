"""Writing pruned checkpoints: from files to files without building the model, or from a model in memory.

Both write next to the output folder and rename it into place at the end: an output folder is whole or absent.
"""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.anatomy.layer_config import recorded_architecture
from pruning.checkpoints.anatomy_reader import anatomy_of, layer_shapes, read_anatomy
from pruning.checkpoints.file_errors import writing
from pruning.checkpoints.headers import INDEX_NAME, stored_tensors
from pruning.checkpoints.loading import PLAN_NAME
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE, file_layout, plan_shards, tensor_bytes
from pruning.cutting.base_model import base_of_loaded, read_base_model
from pruning.cutting.model_card import write_card
from pruning.cutting.pruned_config import RECOVERY_KEY, write_config
from pruning.cutting.reconstruct_checkpoint import Reconstruction
from pruning.cutting.round_checkpoint import GptqRounding
from pruning.cutting.streaming.bias import check_biases
from pruning.cutting.streaming.companions import companion_bytes, copy_companions
from pruning.cutting.streaming.draft import SAVED_MODEL, draft_contents, draft_folder, locked_draft
from pruning.cutting.streaming.outputs import OutputTensor, is_cut_of_inputs, output_tensors, with_solved
from pruning.cutting.streaming.packed import PackedTensor
from pruning.cutting.streaming.place import check_place, check_room
from pruning.cutting.streaming.ranked_weights import checked_alongside
from pruning.cutting.streaming.shard_writer import write_shard
from pruning.cutting.streaming.solved import SolvedFiles, layer_folder, solved_folder
from pruning.cutting.surgery import check_applicable, note_of_training
from pruning.errors import CheckpointError
from pruning.missing_packages import needing
from pruning.planning.plan import PruningPlan, RecoveryStep
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.checkpoints.processor import Processor

logger = logging.getLogger(__name__)

# The config, the index and the folder's own blocks: less than this beside any weights.
_REST_BYTES = 2**20


def prune_checkpoint(
    source: str | Path,
    plan: PruningPlan,
    ranking: Ranking,
    out: str | Path,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    base_model: str | None = None,
    reconstruction: Reconstruction | None = None,
    rounding: GptqRounding | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
    on_warning: Callable[[str], None] = logger.warning,
) -> Path:
    """Write the checkpoint in `source`, cut as `plan` says, to the new folder `out`.

    Everything is checked before the first byte is written. Only what is kept is read, block by block, so that memory
    depends on neither model nor shards. A run that was interrupted or killed, or that a full disk or an unreadable file
    stopped, is gone on with when it is run again: the weight files that it finished stay. Any other error leaves
    nothing behind.

    Args:
        source: the dense checkpoint's folder; it is never touched.
        max_shard_size: bytes of tensors in one weight file, at most. `plan.achieved.disk_bytes` is what the default
            comes to; each file more or less is one header more or less.
        base_model: the dense model's id on the hub, for the model card; by default what its folder says.
        reconstruction: solve the projections out of what is cut anew (`pruning.cutting.reconstruction`), one decoder
            layer in memory at a time; plan and config of the output say so. Layers that a killed run has solved are
            not solved again.
        rounding: round what is in fewer bits by GPTQ (`pruning.cutting.round_checkpoint`), in the same way and after a
            reconstruction; by default to nearest, without data.
        on_bytes: told of `(done, total)` bytes of weight files; the first call says what an earlier run had done.
        on_warning: told that the plan counts on a training, which is not done here, nor does the plan in `out` list it;
            and, when `out` is there, that these are not the weights that were ranked. The plan is applied all the same:
            shapes fit, and the same weights may lie in other files.

    Raises:
        CheckpointError: the source is damaged, `out` exists or cannot be written, or another run writes it.
        FingerprintMismatchError: plan, ranking and checkpoint do not belong together.
        PlanError: the plan asks for what cannot be cut, or counts on a reconstruction or on GPTQ, which is not
            asked for; or GPTQ is, and no weight is in fewer bits.
        MissingExtraError: weights are in fewer bits, and compressed-tensors is not installed.
        InputError: a reconstruction has no two conversations.
        InputError: `base_model` can be no id.
    """
    source, out = Path(source), Path(out)
    training, plan = note_of_training(plan), plan.untrained
    if reconstruction is not None:
        plan = plan.recovered_by(reconstruction.step)
    if rounding is not None:
        plan = plan.recovered_by(rounding.step)
    check_place(out, source=source)
    base = read_base_model(source, base_model)
    stored = stored_tensors(source)
    anatomy = read_anatomy(source, stored)
    check_applicable(
        plan, anatomy, ranking, reconstructs=reconstruction is not None, packs=True, rounds=rounding is not None
    )
    if anatomy.sizes(plan.architecture(anatomy)) != plan.architecture(anatomy):
        with needing("quantise"):
            import compressed_tensors  # noqa: F401
    outputs = output_tensors(anatomy, plan, ranking, stored)
    shards = plan_shards([output.header for output in outputs.values()], max_shard_size=max_shard_size)
    layouts = {
        file_name: file_layout([outputs[name].header for name in names])
        for file_name, names in shards.filename_to_tensors.items()
    }
    sizes = {file_name: layout.file_bytes for file_name, layout in layouts.items()}
    contents = draft_contents(
        plan.architecture(anatomy),
        ranking,
        stored,
        max_shard_size=max_shard_size,
        calibration_id=None if reconstruction is None else reconstruction.calibration_id,
        rounded_on=None if rounding is None else rounding.calibration_id,
    )
    rest = companion_bytes(source) + _REST_BYTES
    makes = reconstruction is not None or rounding is not None
    made = _made_bytes(outputs, solves=reconstruction is not None, rounds=rounding is not None)
    kept = solved_folder(out) if makes else draft_folder(out)
    with writing(out, draft=kept), locked_draft(out, contents) as draft, ExitStack() as stack:
        finished = draft.finished(sizes)
        done, total = sum(sizes[name] for name in finished), sum(sizes.values())
        draft.make_way(sizes)  # what a run that was killed left half-written takes room
        check_room({out: total - done + rest + made})
        if makes:
            folder = stack.enter_context(layer_folder(out, contents))
            files, units = SolvedFiles(folder), anatomy.sizes(plan.architecture(anatomy))
            if reconstruction is not None:
                reconstruction.solve(source, anatomy, units, ranking, files)
                outputs = with_solved(outputs, files.stored(anatomy))
            if rounding is not None:
                rounded = rounding.round(source, anatomy, units, ranking, outputs, files.tensors, folder / "rounded")
                outputs = with_solved(outputs, rounded)
        missing = sizes.keys() - finished
        check_biases(outputs[name] for file_name in missing for name in shards.filename_to_tensors[file_name])

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if on_bytes is not None:
                on_bytes(done, total)

        with checked_alongside(source, plan) as warning_of_weights:
            with draft.writing(sizes) as place:
                advance(0)
                config = write_config(source, plan, place, anatomy)
                copy_companions(source, place)
                write_card(place, base, plan, config, anatomy.layers)
                (place / PLAN_NAME).write_text(plan.to_json())
                for file_name, layout in layouts.items():
                    if file_name in missing:
                        write_shard(place / file_name, layout, outputs, on_bytes=advance)
                if shards.is_sharded:
                    index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
                    (place / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
            for warning in (training, warning_of_weights()):
                if warning:
                    on_warning(warning)
    return out


def _made_bytes(outputs: Mapping[str, OutputTensor], *, solves: bool, rounds: bool) -> int:
    """Bytes of what waits on the disk until it is written: weights that are solved anew, those of which inputs are cut,
    and what is rounded on data."""
    cut = (x.weight if isinstance(x, PackedTensor) else x for x in outputs.values() if is_cut_of_inputs(x))
    headers = {x.header for x in cut} if solves else set()  # of what is packed, each part is of one weight
    headers |= {x.header for x in outputs.values() if rounds and isinstance(x, PackedTensor)}
    return sum(tensor_bytes(shape, dtype) for _, shape, dtype in headers)


def save_pruned(
    model: "PreTrainedModel", plan: PruningPlan, out: str | Path, *, processor: "Processor | None" = None
) -> Path:
    """Save a model that `apply_plan` has cut, with its processor if given, to the new folder `out`.

    Raises:
        CheckpointError: the model's widths or biases are not the plan's, `out` exists or cannot be written, or another
            run writes it. Nothing is left then.
    """
    from pruning.anatomy.decoder_view import decoder_view

    view = decoder_view(model)
    recorded = recorded_architecture(model.config)
    dense = anatomy_of(model).layers if recorded is None else layer_shapes(model.config)
    widths = [view.ffn_width(layer) for layer in range(len(view.layers))]
    found = recorded or Architecture()
    planned = plan.architecture_of(dense)
    planned_widths = list(planned.units(Sublayer.FFN, [layer.ffn_width for layer in dense]))
    if found != planned or widths != planned_widths:
        raise CheckpointError(
            "the model must have the plan's sizes",
            values=f"model {widths} {found.document()}, plan {planned_widths} {planned.document()}",
            remedy="Call apply_plan(model, plan) first",
        )
    cut = [layer.index for layer, width in zip(dense, widths, strict=True) if 0 < width < layer.ffn_width]
    if plan.compensates and any(view.out_projection(x).bias is None for x in cut):
        raise CheckpointError(
            "the model must have the biases that its plan adds",
            values=f"plan {plan.plan_id} compensates for what it removes",
            remedy="Call apply_plan(model, plan) first",
        )
    plan = plan.untrained  # the config says what trainings there were
    for step in getattr(model.config, RECOVERY_KEY, ()):
        plan = plan.recovered_by(RecoveryStep.model_validate(step))
    out = Path(out)
    check_place(out)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with writing(out), locked_draft(out, SAVED_MODEL) as draft:
        check_room({out: weights + _REST_BYTES})
        with draft.writing({}) as folder:
            model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
            if processor is not None:
                processor.save_pretrained(folder)
            base = base_of_loaded(str(model.name_or_path), plan.model.id)
            write_card(folder, base, plan, model.config, dense)
            (folder / PLAN_NAME).write_text(plan.to_json())
    return out
