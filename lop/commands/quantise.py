"""`lop quantise`: a checkpoint's projections in few bits."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lop.commands.options import Json, conversations_of, one_of
from lop.console.console import fail, print_json, print_line, stages, warn

INTERRUPTED = 130


def quantise(
    model: Annotated[
        Path,
        typer.Argument(
            help="The checkpoint's folder: dense, or what `lop apply`, `lop recover` or `lop sparsify` wrote."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the quantised checkpoint.")],
    bits: Annotated[
        str, typer.Option(help="4 or 8 for all decoder layers, or one number for each, in order: 8,4,4,8.")
    ] = "4",
    group: Annotated[int, typer.Option(help="Inputs that share a scale: 32, 64 or 128.")] = 32,
    method: Annotated[
        str, typer.Option(help="gptq, which needs --data, or rtn: to nearest. Default: gptq with --data.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Calibration conversations, LLaVA-format JSON.")
    ] = None,
    conversations: Annotated[int | None, typer.Option(min=1, help="Use only the first N conversations.")] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="The dense model's id on the hub, for the model card. Default: what its folder says."),
    ] = None,
    json: Json = False,
) -> None:
    """Write the projections of decoder layers in 4 or 8 bits, as transformers reads them (compressed-tensors).

    vLLM takes dense models, and of cut ones some language models in 4 bits (docs/vllm.md).
    What was cut is loaded by `lop.load_pruned` again. Of its projections those stay as they are whose inputs come in no
    whole groups, not even of 32; plan with `--round-to 32`, and there are none. Weights that `lop sparsify` zeroed stay
    zero.

    One layer is in memory at a time. The output folder is complete or absent; interrupted or killed, the same command
    goes on. For llama.cpp, see `lop export gguf`.
    """
    from lop.workflows.compute import compute_device, warn_of_adapter, warn_of_dtype
    from lop.workflows.measuring import streamed
    from lop.workflows.sparsifying import warnings_of
    from pruning.cutting.rewriting.quantise_checkpoint import Quantisation, quantise_checkpoint
    from pruning.cutting.rewriting.quantiser import Rounding
    from pruning.cutting.streaming.solved import solved_folder
    from pruning.data.conversations import calibration_id
    from pruning.errors import InputError

    words = bits.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise InputError("--bits is one number for all decoder layers, or one for each", values=repr(bits))
    if data is None and conversations is not None:
        raise InputError("--conversations is of --data", values=str(conversations), remedy="Give --data FILE")
    rounding = one_of(Rounding, method or ("rtn" if data is None else "gptq"), "--method")
    asked = Quantisation(rounding, tuple(int(word) for word in words), group)
    warn_of_adapter(model)
    loaded = None if data is None else conversations_of(data, conversations)
    warn_of_dtype(model)
    try:
        with stages() as stage:
            report = quantise_checkpoint(
                model,
                out,
                asked,
                compute_device(),
                batches=None if loaded is None else streamed(model, loaded),
                calibration_id=None if loaded is None else calibration_id(loaded),
                base_model=base_model,
                on_batch=stage("rounding"),
                on_bytes=stage("writing"),
            )
    except KeyboardInterrupt:
        if not solved_folder(out).is_dir():
            raise
        fail(f"interrupted; what is finished is in {solved_folder(out)}: run the same command to go on, or remove it")
        sys.exit(INTERRUPTED)
    for warning in warnings_of(report["projections"]):
        warn(warning)
    if plain := report.get("plain"):
        warn(
            f"{len(plain)} projections stay as they are, since 32 divides not their inputs (of {next(iter(plain))} "
            f"{next(iter(plain.values())):,}). What is planned with `--round-to 32` is quantised throughout"
        )
    if json:
        print_json({"out": str(out), **report})
        return
    print_line(f"wrote {out}: {report['weights_bytes']:,} bytes of weights, {report['dense_bytes']:,} before")
