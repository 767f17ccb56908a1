"""`lop apply`: cut a checkpoint, and train what is left if that is asked for."""

import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lop.commands.options import Json, conversations_of, one_of
from lop.commands.recover import draw, show_recovery, train
from lop.commands.recovery_options import PANEL, RecoveryOptions, with_recovery_options
from lop.console.console import bar, fail, print_json, print_line, stages, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pruning.cutting.reconstruct_checkpoint import Reconstruction
    from pruning.cutting.reconstruction import SolvedSite
    from pruning.cutting.round_checkpoint import GptqRounding
    from pruning.data.conversations import Conversation
    from pruning.planning.plan import PruningPlan
    from pruning.planning.ranking import Ranking

INTERRUPTED = 130

_NONE = "none"
"""Of --method: weights in fewer bits are not rounded."""

_RESIDENT_BYTES = 2**26
"""Of hidden states that stay in memory on a CPU. They are the one thing there that would grow with the data, 8 KB a
token of a 1B model in float32: half a gigabyte at ten tokens an input. A disk has read and written a token's in a
fraction of the time in which its layer is computed. GPUs are faster than that, and leave the host's memory alone."""

_SKIPS = (
    "config.json lists the skipped sub-layers as transformers records them, but its from_pretrained makes them anew, "
    "of random weights, unless lop.register_transformers() was called: call it, or load the folder with lop.load_pruned"
)


@with_recovery_options
def apply(
    plan: Annotated[Path, typer.Option("--plan", "-p", help="Plan file, from `lop plan --out`.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="The dense checkpoint's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the pruned checkpoint.")],
    ranking: Annotated[
        Path | None,
        typer.Option(help="Ranking file. Default: the one beside the plan, else the plan's URL."),
    ] = None,
    reconstruct: Annotated[
        Path | None,
        typer.Option(
            "--reconstruct",
            metavar="DATA",
            help="Solve the projections out of what is cut anew, by least squares on these conversations (LLaVA-format "
            "JSON): what is kept takes over for what goes.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="How weights in fewer bits are rounded, as in `lop quantise`: gptq, on the conversations of --data or "
            "--reconstruct, or rtn: to nearest, as they were scored; or none: they keep their dtype, for llama.cpp's "
            "own quantiser (`lop export gguf --plan`). Default: gptq with --data, else rtn."
        ),
    ] = "",
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Calibration conversations for GPTQ, LLaVA-format JSON.")
    ] = None,
    conversations: Annotated[
        int | None, typer.Option(min=1, help="Of --reconstruct or --data, use only the first N.")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Tensors in one weight file, at most; memory does not depend on it.")
    ] = "5GB",
    base_model: Annotated[
        str | None,
        typer.Option(help="The dense model's id on the hub, for the model card. Default: what its folder says."),
    ] = None,
    recover: Annotated[
        Path | None,
        typer.Option(
            "--recover",
            metavar="DATA",
            help="Train what was cut on these conversations, as `lop recover` does, before the folder is written.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: compare the finished folder with what would be written.")
    ] = False,
    json: Json = False,
    *,
    how: RecoveryOptions,
) -> None:
    """Apply a plan to a checkpoint: safetensors in, safetensors out, tokenizer, processor and a model card included.

    Only what is kept is read, in blocks: under half a gigabyte of memory whatever the model's size. The output folder
    is complete or absent; interrupted or killed, the same command goes on. `lop.load_pruned(folder)` loads the result.
    With --check, a folder that is there already is compared with the plan: sizes, shapes, bytes, every weight (of what
    --reconstruct solved, shapes alone); one that --method none made, with --method none again.

    With --reconstruct all conversations go through one decoder layer after the other, twice through each that is cut.
    Memory is as for `lop model add --data`, and beside it 20 to 45 bytes times the square of a layer's FFN width, the
    more the more is kept.

    With --method gptq, what the plan has in fewer bits is rounded after that, layer by layer again: all conversations
    go twice through each layer with such weights. What the plan predicts is of weights rounded to nearest. With
    --method none nothing is rounded; the folder's own plan, under another id, is that of the units alone.

    With --recover the cut checkpoint lies beside the output until that is whole; the training is that of `lop recover`,
    with the options below, --model is its teacher, and what is written is never worse than what was cut. A plan for
    after recovery (`lop plan --after-recovery`) is trained by its own recipe, but for what options say.
    """
    from lop.applying import load_ranking, load_ranking_of
    from lop.console.quantities import parse_bytes
    from lop.workflows.compute import warn_of_adapter
    from lop.workflows.reconstructing import summary_of
    from lop.workflows.recovering import check_cut_and_recover, check_launched_alone, cut_folder, planned_recipe
    from lop.workflows.sparsifying import warnings_of as warnings_of_rounding
    from pruning.checkpoints.anatomy_reader import read_anatomy
    from pruning.cutting.prune_checkpoint import prune_checkpoint
    from pruning.cutting.reconstruct_checkpoint import warnings_of
    from pruning.cutting.rewriting.quantiser import Rounding
    from pruning.data.conversations import calibration_id
    from pruning.errors import InputError
    from pruning.planning.make_plan import without_bits
    from pruning.planning.plan import PruningPlan
    from recovery.plain_weights import PLAIN_WEIGHTS

    if reconstruct is None and data is None and conversations is not None:
        raise InputError(
            "a number of conversations is of --reconstruct or --data",
            values=f"--conversations {conversations}",
            remedy="Give --reconstruct FILE or --data FILE",
        )
    leaves_plain = method == _NONE
    if leaves_plain and data is not None:
        raise InputError("conversations of --data are to round on", remedy="Leave --data out, or --method none")
    rounding = one_of(Rounding, ("" if leaves_plain else method) or ("rtn" if data is None else "gptq"), "--method")
    if data is not None and reconstruct is not None:
        raise InputError(
            "--reconstruct and --data are the same conversations",
            values=f"{reconstruct}, {data}",
            remedy="Give --reconstruct FILE --method gptq",
        )
    if rounding is Rounding.GPTQ and data is None and reconstruct is None:
        raise InputError("GPTQ needs calibration data", remedy="Give --data, or choose --method rtn")
    if rounding is Rounding.NEAREST and data is not None:
        raise InputError(
            "rounding to nearest is without data, as it was scored",
            values=f"--method rtn --data {data}",
            remedy="Leave --data out, or choose --method gptq",
        )
    if recover is None and how.is_given:
        raise InputError("options of a recovery are of --recover", remedy="Give --recover FILE, or leave them out")
    if check and (others := [name for name, x in (("--method", method), ("--data", data)) if x and x != _NONE]):
        raise InputError("--check compares a folder, and makes none", remedy=f"Drop {' and '.join(others)}")
    if recover is not None and rounding is Rounding.GPTQ:
        raise InputError(
            PLAIN_WEIGHTS,
            values=f"--recover {recover}, --method gptq",
            remedy="Recover what a plan of units alone makes, then `lop quantise` the recovered checkpoint",
        )
    if recover is not None and check:
        raise InputError("--check compares what is cut, and a training changes every weight", remedy="Drop --recover")
    if recover is not None:
        check_launched_alone("lop apply --recover")
    shard_bytes = parse_bytes(max_shard_size)
    document = PruningPlan.load(plan)
    kept = load_ranking_of(document, plan) if ranking is None else load_ranking(document, ranking)
    if leaves_plain:
        document = without_bits(document, read_anatomy(model))
    if check:
        _check(model, document, kept, out, json=json)
        return
    warn_of_adapter(model)
    given = reconstruct or data
    loaded = None if given is None else conversations_of(given, conversations)
    target, training = out, None
    if recover is not None:
        recipe = planned_recipe(document, how.recipe(), on_note=warn)
        document = document.untrained  # until it is
        target = cut_folder(out, document, model, shard_bytes, base_model, loaded and calibration_id(loaded))
        check_cut_and_recover(document, model, recipe, out, target)
        training = how.parts(recover, recipe), recipe
    warnings: list[str] = []
    made = _Made(reconstructs=reconstruct is not None, rounds=rounding is Rounding.GPTQ)
    solved = made.solved
    if training is None or not target.is_dir():  # complete or absent: an interrupted command has cut it
        cut = partial(prune_checkpoint, max_shard_size=shard_bytes, base_model=base_model)
        _cut(cut, model, document, kept, target, loaded, made, warnings)
    warnings += warnings_of(solved) + warnings_of_rounding(made.rounded)
    if document.skips:
        warnings.append(_SKIPS)
    for warning in warnings:
        warn(warning)
    report = None
    if training is not None:
        report = train(target, model, *training, out, how)
        shutil.rmtree(target)
        draw(report, how)
    files = list(out.glob("*.safetensors"))
    weights = sum(path.stat().st_size for path in files)
    parameters = document.achieved.parameters
    if json:
        written = {"out": str(out), "weights_bytes": weights, "weight_files": len(files), "parameters": parameters}
        if solved or (reconstruct is not None and report is None):
            written["reconstruction"] = summary_of(solved)
        if made.rounded:
            written["rounding"] = {"method": rounding.value, "projections": made.rounded}
        print_json(written if report is None else {**written, "recovery": report})
    else:
        print_line(f"wrote {out}: {parameters:,} parameters, {weights:,} bytes of weights")
        if solved:
            found = summary_of(solved)
            print_line(
                f"solved {found['projections']} projections from {found['tokens']:,} tokens: of their outputs on those "
                f"held out they lose {found['lost_output']:.1%}, {found['lost_output_without']:.1%} without"
            )
        if made.rounded:
            lost = [note["lost_output"] for note in made.rounded.values() if note["lost_output"] is not None]
            mean = f": of their outputs on tokens held out they lose {sum(lost) / len(lost):.1%}" if lost else ""
            print_line(f"rounded {len(made.rounded)} projections by GPTQ{mean}")
        if report is not None:
            show_recovery(out, report)


@dataclass
class _Made:
    """What data is to make of the weights, and how each was made once it is."""

    reconstructs: bool
    rounds: bool
    solved: "list[SolvedSite]" = field(default_factory=list)
    rounded: "dict[str, Mapping[str, Any]]" = field(default_factory=dict)


def _cut(
    cut: "Callable[..., Path]",
    model: Path,
    plan: "PruningPlan",
    ranking: "Ranking",
    out: Path,
    conversations: "list[Conversation] | None",
    made: "_Made",
    warnings: list[str],
) -> None:
    """`cut` it, with what `made` says to be made on `conversations` if there are any; adds to `made` and `warnings`.

    Interrupted, it says where to go on, and exits.
    """
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from lop.workflows.reconstructing import reconstruction_on, rounding_on
    from pruning.cutting.streaming.draft import draft_folder
    from pruning.cutting.streaming.solved import solved_folder

    try:
        with ExitStack() as stack:
            reconstruction: Reconstruction | None = None
            rounding: GptqRounding | None = None
            if conversations is None:
                on_bytes = stack.enter_context(bar("writing", DownloadColumn(), TransferSpeedColumn()))
            else:
                stage = stack.enter_context(stages())
                if made.reconstructs:
                    reconstruction = reconstruction_on(
                        model, conversations, on_batch=stage("solving"), on_solved=made.solved.extend
                    )
                    if reconstruction.device.type == "cpu":
                        reconstruction = replace(reconstruction, resident_bytes=_RESIDENT_BYTES)
                if made.rounds:
                    rounding = rounding_on(
                        model, conversations, on_batch=stage("rounding"), on_rounded=made.rounded.update
                    )
                    if rounding.device.type == "cpu":
                        rounding = replace(rounding, resident_bytes=_RESIDENT_BYTES)
                on_bytes = stage("writing")
            cut(
                model,
                plan,
                ranking,
                out,
                reconstruction=reconstruction,
                rounding=rounding,
                on_bytes=on_bytes,
                on_warning=warnings.append,
            )
    except KeyboardInterrupt:
        places = [folder for folder in (draft_folder(out), solved_folder(out)) if folder.is_dir()]
        if not places:
            raise
        fail(f"interrupted; what is finished is in {places[0]}: run the same command to go on, or remove it")
        sys.exit(INTERRUPTED)


def _check(model: Path, plan: "PruningPlan", ranking: "Ranking", out: Path, *, json: bool) -> None:
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from pruning.cutting.check_pruned import check_pruned

    with bar("comparing", DownloadColumn(), TransferSpeedColumn()) as on_bytes:
        found = check_pruned(model, plan, ranking, out, on_bytes=on_bytes)
    if json:
        counts = {"tensors": found.num_tensors, "solved": found.num_solved, "weights_bytes": found.weights_bytes}
        print_json({"out": str(out), **counts})
        return
    apart = f", but for {found.num_solved} that were made on data, of which shapes" if found.num_solved else ""
    print_line(f"{out} is what plan {plan.plan_id} makes of {model}: {found.num_tensors} tensors, byte for byte{apart}")
