"""Whether a finished folder is what its plan makes of the dense checkpoint: the plan, the config, shapes, bytes."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.layer_config import recorded_architecture
from pruning.checkpoints.anatomy_reader import load_config, read_anatomy
from pruning.checkpoints.blocks import BLOCK_BYTES, Bytes, open_weights, read_bytes
from pruning.checkpoints.file_errors import reading
from pruning.checkpoints.headers import StoredTensor, stored_tensors, weight_files
from pruning.checkpoints.loading import PLAN_NAME
from pruning.cutting.streaming.outputs import OutputTensor, is_cut_of_inputs, output_tensors
from pruning.cutting.streaming.packed import PackedTensor
from pruning.cutting.surgery import check_applicable
from pruning.errors import CheckpointError
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking

_AGAIN = "It was changed, or is not of this plan: run `lop apply` into another folder"


@dataclass(frozen=True, slots=True)
class CheckedFolder:
    """A folder that is what its plan says: how many tensors were compared, and the bytes of its weight files.

    Of `num_solved` of the tensors, which a reconstruction, GPTQ or a training made, shapes alone were compared.
    """

    num_tensors: int
    weights_bytes: int
    num_solved: int = 0


def check_pruned(
    source: str | Path,
    plan: PruningPlan,
    ranking: Ranking,
    out: str | Path,
    *,
    on_bytes: Callable[[int, int], None] | None = None,
) -> CheckedFolder:
    """Compare the pruned checkpoint in `out` with what `plan` and `ranking` make of the dense one in `source`.

    In this order: the plan that lies in the folder, the sizes in its config, every tensor's name, shape and dtype, the
    bytes of the weight files against `plan.achieved.disk_bytes`, then every byte of every tensor. How the tensors are
    spread over files is free: the bytes of the files then differ by headers, and are compared tensor by tensor alone.
    Where the folder's plan says that the projections out of what is cut were solved anew, of these no bytes are
    compared: they are not what cutting makes; nor are they of weights that were rounded by GPTQ. Of a folder that was
    trained (`lop recover`), none are at all.

    Args:
        on_bytes: told of `(done, total)` bytes of tensors.

    Raises:
        CheckpointError: the first difference; or one of the folders is damaged or half-written.
        FingerprintMismatchError, PlanError: as `prune_checkpoint`; the plan in the folder is of a schema that this
            version does not read.
    """
    source, out = Path(source), Path(out)
    stored = stored_tensors(source)
    anatomy = read_anatomy(source, stored)
    found = stored_tensors(out)
    inside = _plan_inside(out)
    check_applicable(plan, anatomy, ranking, reconstructs=inside.reconstructs, packs=True, rounds=inside.rounds)
    planned = plan.architecture(anatomy)
    _check_plan(plan, planned, anatomy, inside, out)
    recorded = recorded_architecture(load_config(out)) or Architecture()
    if recorded != anatomy.sizes(planned):
        raise CheckpointError(
            "config.json must record the sizes of the plan",
            values=f"{out}: {recorded.document()}, plan {planned.document()}",
            remedy=_AGAIN,
        )
    outputs = output_tensors(anatomy, plan, ranking, stored)
    _check_headers(outputs, found, out)
    weights_bytes = _check_sizes(plan, out)
    solved = {
        name
        for name, x in outputs.items()
        if inside.distils
        or (inside.reconstructs and is_cut_of_inputs(x))
        or (inside.rounds and isinstance(x, PackedTensor))
    }
    _check_contents({name: x for name, x in outputs.items() if name not in solved}, found, on_bytes)
    return CheckedFolder(len(outputs), weights_bytes, len(solved))


def _plan_inside(out: Path) -> PruningPlan:
    if not (out / PLAN_NAME).is_file():
        raise CheckpointError(
            f"a folder that `lop apply` wrote holds {PLAN_NAME}",
            values=str(out),
            remedy="One that was saved again by save_pretrained has other weights: `lop inspect` says what it holds",
        )
    return PruningPlan.load(out / PLAN_NAME)


def _check_plan(
    plan: PruningPlan, planned: Architecture, anatomy: ModelAnatomy, inside: PruningPlan, out: Path
) -> None:
    same_names = (inside.plan_id, inside.ranking.sha256) == (plan.plan_id, plan.ranking.sha256)
    if not same_names or inside.architecture(anatomy) != planned:
        raise CheckpointError(
            f"{PLAN_NAME} in the folder must be the plan",
            values=f"{out}: plan {inside.plan_id} with ranking {inside.ranking.sha256[:12]}, asked for {plan.plan_id} "
            f"with ranking {plan.ranking.sha256[:12]}",
            remedy="It was cut with --method none: compare it with that, too"
            if inside.provenance.units_of == plan.plan_id
            else "Compare it with the plan that it was made of",
        )


def _check_headers(outputs: Mapping[str, OutputTensor], found: Mapping[str, StoredTensor], out: Path) -> None:
    for name in sorted(outputs.keys() | found.keys()):
        planned = _described(outputs[name].header[1:]) if name in outputs else "none"
        there = _described(found[name].header[1:]) if name in found else "none"
        if planned != there:
            raise CheckpointError(
                "the folder must hold the plan's tensors, of its shapes",
                values=f"{out}: {name} is {there}, planned {planned}",
                remedy=_AGAIN,
            )


def _described(header: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = header
    return f"{dtype} {list(shape)}"


def _check_sizes(plan: PruningPlan, out: Path) -> int:
    """Bytes of the weight files; those of one file of the usual size are the plan's."""
    files = weight_files(out)
    with reading(out):
        total = sum(path.stat().st_size for path in files)
    if len(files) == 1 and total != plan.achieved.disk_bytes:
        raise CheckpointError(
            "the weight files must have the bytes that the plan says",
            values=f"{out}: {total:,}, plan {plan.achieved.disk_bytes:,}",
            remedy=_AGAIN,
        )
    return total


def _check_contents(
    outputs: Mapping[str, OutputTensor],
    found: Mapping[str, StoredTensor],
    on_bytes: Callable[[int, int], None] | None,
) -> None:
    total, done = sum(found[name].num_bytes for name in outputs), 0
    for name, output in outputs.items():
        with closing(_differences(output.blocks(BLOCK_BYTES), found[name])) as blocks:
            for num_bytes, differs in blocks:
                if differs:
                    raise CheckpointError(
                        "the weights must be those of the dense checkpoint, cut as the plan says",
                        values=f"{found[name].path}: {name}",
                        remedy="It was trained or changed since, or was made of other weights: compare with those",
                    )
                done += num_bytes
                if on_bytes is not None:
                    on_bytes(done, total)


def _differences(planned: Iterable[Bytes], tensor: StoredTensor) -> Generator[tuple[int, bool], None, None]:
    """For each block of `planned`: its bytes, and whether the file has others there."""
    offset = tensor.offset
    with open_weights(tensor.path) as file:
        for block in planned:
            yield len(block), not np.array_equal(block, read_bytes(file, offset, len(block)))
            offset += len(block)
