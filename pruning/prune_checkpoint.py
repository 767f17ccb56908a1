"""Writing pruned checkpoints: from files to files without building the model, or from a model in memory.

Both write next to the output folder and rename it into place at the end: an output folder is whole or absent.
"""

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy import ModelAnatomy
from pruning.anatomy_reader import anatomy_of, layer_shapes, load_config, read_anatomy
from pruning.checkpoint import PLAN_NAME
from pruning.errors import CheckpointError
from pruning.families import family_of
from pruning.headers import INDEX_NAME, stored_tensors
from pruning.layer_config import layer_overrides, recorded_sizes
from pruning.plan import PruningPlan
from pruning.ranking import Ranking
from pruning.safetensors_layout import MAX_SHARD_SIZE, file_layout, plan_shards
from pruning.streaming.companions import companion_files, copy_companions
from pruning.streaming.draft import draft_contents, locked_draft, publish
from pruning.streaming.outputs import output_tensors
from pruning.streaming.place import check_place, check_room
from pruning.streaming.shard_writer import write_shard
from pruning.surgery import check_applicable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from pruning.batches import Processor

# The config, the index and the folder's own blocks: less than this beside any weights.
_REST_BYTES = 2**20


def prune_checkpoint(
    source: str | Path,
    plan: PruningPlan,
    ranking: Ranking,
    out: str | Path,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    on_bytes: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the checkpoint in `source`, cut as `plan` says, to the new folder `out`.

    Everything is checked before the first byte is written. Only what is kept is read, block by block, so that memory
    depends on neither model nor shards. A run that was interrupted or killed is gone on with when it is run again: the
    weight files that it finished stay. An error leaves nothing behind.

    Args:
        source: the dense checkpoint's folder; it is never touched.
        max_shard_size: bytes of tensors in one weight file, at most. `plan.achieved.disk_bytes` is what the default
            comes to; each file more or less is one header more or less.
        on_bytes: told of `(done, total)` bytes of weight files; the first call says what an earlier run had done.

    Raises:
        CheckpointError: the source is damaged, `out` exists or cannot be written, or another run writes it.
        FingerprintMismatchError: plan, ranking and checkpoint do not belong together.
        PlanError: the plan asks for what cannot be cut.
    """
    source, out = Path(source), Path(out)
    check_place(out, source=source)
    stored = stored_tensors(source)
    anatomy = read_anatomy(source)
    check_applicable(plan, anatomy, ranking)
    outputs = output_tensors(anatomy, plan, ranking, stored)
    shards = plan_shards([output.header for output in outputs.values()], max_shard_size=max_shard_size)
    layouts = {
        file_name: file_layout([outputs[name].header for name in names])
        for file_name, names in shards.filename_to_tensors.items()
    }
    sizes = {file_name: layout.file_bytes for file_name, layout in layouts.items()}
    contents = draft_contents(plan, ranking, stored, max_shard_size=max_shard_size)
    with _writing_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked_draft(out, contents) as draft:
            finished = draft.finished(sizes)
            done, total = sum(sizes[name] for name in finished), sum(sizes.values())
            copied = sum((source / path).stat().st_size for path in companion_files(source))
            check_room(out, total - done + copied + _REST_BYTES)

            def advance(num_bytes: int) -> None:
                nonlocal done
                done += num_bytes
                if on_bytes is not None:
                    on_bytes(done, total)

            with draft.writing(finished) as folder:
                advance(0)
                write_config(source, plan, folder)
                copy_companions(source, folder)
                (folder / PLAN_NAME).write_text(plan.to_json())
                for file_name, layout in layouts.items():
                    if file_name not in finished:
                        write_shard(folder / file_name, layout, outputs, on_bytes=advance)
                if shards.is_sharded:
                    index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
                    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return out


@contextmanager
def _writing_errors(out: Path) -> Iterator[None]:
    """Makes of what the file system refuses a CheckpointError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointError(
                "the disk must have room for the pruned checkpoint",
                values=f"{out}: {error.strerror}",
                remedy="Nothing was left there; free some room, or choose a folder on another disk",
            ) from error
        raise CheckpointError(
            "the output folder must be writable", values=f"{error.filename or out}: {error.strerror}"
        ) from error


def save_pruned(
    model: "PreTrainedModel", plan: PruningPlan, out: str | Path, *, processor: "Processor | None" = None
) -> Path:
    """Save a model that `apply_plan` has cut, with its processor if given, to the new folder `out`.

    Raises:
        CheckpointError: the model's widths or biases are not the plan's, or `out` exists.
    """
    from pruning.decoder import decoder_view

    view = decoder_view(model)
    found = recorded_sizes(model.config) or anatomy_of(model).dense_sizes
    widths = tuple(view.ffn_width(layer) for layer in range(len(view.layers)))
    if found != plan.sizes or widths != plan.sizes.ffn_widths:
        raise CheckpointError(
            "the model must have the plan's sizes",
            values=f"model {found}, plan {plan.sizes}",
            remedy="Call apply_plan(model, plan) first",
        )
    dense = layer_shapes(model.config)
    cut = [layer.index for layer in dense if plan.layers[layer.index].ffn_width < layer.ffn_width]
    if plan.ranking.compensates and any(view.out_projection(x).bias is None for x in cut):
        raise CheckpointError(
            "the model must have the biases that its plan adds",
            values=f"plan {plan.plan_id} compensates for what it removes",
            remedy="Call apply_plan(model, plan) first",
        )
    out = Path(out)
    with _new_folder(out) as draft:
        model.save_pretrained(draft, max_shard_size=MAX_SHARD_SIZE)
        if processor is not None:
            processor.save_pretrained(draft)
        (draft / PLAN_NAME).write_text(plan.to_json())
    return out


def write_config(
    source: Path, plan: PruningPlan, draft: Path, anatomy: ModelAnatomy | None = None
) -> "PreTrainedConfig":
    """Write `draft`/config.json: the source's own plus `per_layer_config`, so nothing that transformers does not know
    is lost. Returns it as it is read again.

    Some hub configs are flat, with the language model's fields beside the vision tower's; what transformers makes of
    them is written then, since `per_layer_config` belongs to the language model. `anatomy` is of the source, read from
    its headers if it is not given.
    """
    document: dict[str, Any] = json.loads((source / "config.json").read_text())
    config = load_config(source)
    text = config.get_text_config(decoder=True)
    if text is not config and "text_config" not in document:
        document = config.to_dict()
    place = document.get("text_config", document)
    anatomy = anatomy or read_anatomy(source)
    overrides = layer_overrides(plan.sizes, anatomy, family_of(text))
    if overrides:
        # transformers takes head_dim from the number of heads otherwise, which is not the same in every layer.
        place["head_dim"] = anatomy.layers[0].head_dim
        place["per_layer_config"] = {str(layer): changed for layer, changed in overrides.items()}
        place["allow_global_per_layer_attribute_access"] = True
    (draft / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    written = load_config(draft)
    if (recorded_sizes(written) or anatomy.dense_sizes) != plan.sizes:
        raise CheckpointError("the config must record the plan's sizes", values=f"{source / 'config.json'}")
    return written


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A draft folder that becomes `out` when the block ends well, and is removed when it does not."""
    check_place(out)
    with _writing_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        yield draft
        draft.chmod(0o755)
        publish(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
