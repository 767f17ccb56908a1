"""A checkpoint written again with some of its tensors made anew: whole or absent, gone on with where it was stopped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pruning.anatomy.tensor_roles import TensorHeader
from pruning.checkpoints.file_errors import writing
from pruning.checkpoints.headers import INDEX_NAME, StoredTensor
from pruning.checkpoints.safetensors_layout import file_layout, plan_shards
from pruning.cutting.streaming.companions import companion_bytes, copy_companions
from pruning.cutting.streaming.cuts import TensorCut
from pruning.cutting.streaming.draft import locked_draft, rewritten_contents
from pruning.cutting.streaming.place import check_room
from pruning.cutting.streaming.shard_writer import write_shard
from pruning.cutting.streaming.solved import layer_folder, solved_folder
from pruning.errors import CheckpointError

_REST_BYTES = 2**20
"""The config, the index, the report: less than this beside any weights."""


def rewrite_checkpoint(
    source: Path,
    out: Path,
    stored: Mapping[str, StoredTensor],
    headers: Mapping[str, TensorHeader],
    recipe: str,
    *,
    make: Callable[[Path], Mapping[str, StoredTensor]],
    write_rest: Callable[[Path], None],
    max_shard_size: int,
    what: str,
    on_bytes: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the tensors `headers` to the new folder `out`.

    Args:
        stored: the source's tensors.
        headers: of every tensor of the output.
        recipe: canonical JSON of all that decides what `make` makes.
        make: given a folder to keep finished layers in, makes them all; returns the tensors of its files.
        write_rest: writes config, card and report to the folder that it is given; companions lie there already.
        what: is written, for messages.

    Raises:
        CheckpointError: the output cannot be written, or another run writes it.
        Whatever `make` raises; what is finished stays where the file system or an interrupt stopped it.
    """
    shards = plan_shards([headers[name] for name in sorted(headers)], max_shard_size=max_shard_size)
    layouts = {
        file_name: file_layout([headers[name] for name in names])
        for file_name, names in shards.filename_to_tensors.items()
    }
    sizes = {file_name: layout.file_bytes for file_name, layout in layouts.items()}
    contents = rewritten_contents(recipe, stored, max_shard_size=max_shard_size)
    rest = companion_bytes(source) + _REST_BYTES
    with writing(out, what=what, draft=solved_folder(out)), locked_draft(out, contents) as draft:
        finished = draft.finished(sizes)
        done, total = sum(sizes[name] for name in finished), sum(sizes.values())
        draft.make_way(sizes)
        # What is made anew lies on the disk twice for a while.
        check_room({out: 2 * total - done + rest}, what=what)

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if on_bytes is not None:
                on_bytes(done, total)

        with layer_folder(out, contents) as folder:
            made = make(folder)
            sources = {**stored, **made}
            wrong = [name for name, header in headers.items() if sources[name].header != header]
            if wrong:
                raise CheckpointError(
                    "finished layers must have the tensors of the output",
                    values=f"{wrong[0]} in {sources[wrong[0]].path}",
                    remedy=f"Remove {folder}",
                )
            outputs = {name: TensorCut(header, sources[name]) for name, header in headers.items()}
            with draft.writing(sizes) as place:
                advance(0)
                copy_companions(source, place)
                write_rest(place)
                for file_name, layout in layouts.items():
                    if file_name not in finished:
                        write_shard(place / file_name, layout, outputs, on_bytes=advance)
                if shards.is_sharded:
                    index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
                    (place / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return out
