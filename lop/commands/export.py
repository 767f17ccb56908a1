"""`lop export`: a checkpoint in the format of another runtime."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lop.commands.options import Json
from lop.console.console import bar, print_json, print_line, warn
from pruning.cutting.gguf.options import ClassToken, Quantisation, TensorType
from pruning.errors import InputError

if TYPE_CHECKING:
    from pruning.cutting.gguf.export import GgufExport

app = typer.Typer(help="Write a checkpoint, dense or pruned, for other runtimes.", no_args_is_help=True)


@app.command("gguf")
def gguf(
    model: Annotated[
        Path, typer.Option("--model", "-m", help="The checkpoint's folder: dense, or pruned by `lop apply`.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New file for the language model.")],
    tensor_type: Annotated[
        TensorType,
        typer.Option(
            "--type",
            "-t",
            help="How matrices are stored, but for those that the folder holds in 8 or 4 bits: they are q8_0 or q4_0. "
            "q8_0 takes about half of f16 and is nearly as good. For less: --quantise.",
        ),
    ] = TensorType.F16,
    quantised: Annotated[
        Quantisation | None,
        typer.Option(
            "--quantise",
            "-q",
            case_sensitive=False,
            help="What llama.cpp's own quantiser makes of it, instead of --type. Needs the llama-cpp extra.",
        ),
    ] = None,
    tensor_types: Annotated[
        Path | None,
        typer.Option(
            help="With --quantise: types of single tensors, a line PATTERN=TYPE (blk.0.ffn_down=q6_k); of several "
            "patterns in a tensor's name the first counts."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            "-p",
            help="The plan, with bits, by whose units `lop apply --method none` cut the folder: each sub-layer's bits "
            "say its type for --quantise or --types-out. What --tensor-types name is what those say.",
        ),
    ] = None,
    types_of_bits: Annotated[
        str | None,
        typer.Option(
            "--bits-as",
            help="Of --plan: what bits become, such as 4=q4_k,8=q6_k. Rows that are no multiple of 256 get a type of "
            "32 values a block instead. [default: 8=q8_0,4=q4_k]",
        ),
    ] = None,
    types_out: Annotated[
        Path | None,
        typer.Option(
            help="Of --plan: new tensor-type file for `llama-quantize --tensor-type-file TYPES OUT QUANTISED Q8_0`, "
            "where Q8_0 is for embeddings and head. Q4_0 is safe, too; with others some versions of llama.cpp do not "
            "keep to the file."
        ),
    ] = None,
    mmproj: Annotated[
        Path | None,
        typer.Option(
            help="New file for the vision tower and projector, of families that llama.cpp sees with as transformers "
            "does (LLaVA-1.5, SmolVLM, Idefics3, InternVL, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3). Default: the "
            "language model only."
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Longest context to declare, in tokens. Default: the model's own.")
    ] = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(help="llama.cpp's name for how the tokenizer splits text, where lop does not know it."),
    ] = None,
    class_token: Annotated[
        ClassToken,
        typer.Option(
            help="For CLIP's and InternVL's towers: where your llama.cpp puts the class token. Releases since May 2025 "
            "put it last (ggml-org/llama.cpp#25814).",
        ),
    ] = ClassToken.LAST,
    check: Annotated[
        bool,
        typer.Option(help="If llama-cpp-python is installed: refuse a tokenizer that llama.cpp understands otherwise."),
    ] = True,
    card: Annotated[
        bool,
        typer.Option(
            help="Write README.md, a model card, and Ollama's Modelfile beside the file, unless they are there."
        ),
    ] = True,
    json: Json = False,
) -> None:
    """Write GGUF files for llama.cpp, Ollama, LM Studio and others. Needs the gguf extra.

    Layers of different widths and heads are kept as they are where llama.cpp can (architecture `deci`), and filled up
    with zeros where it gives all layers one size (`qwen2vl`, `qwen3`, `qwen3vl`, `gemma3`). What it would compute
    otherwise is refused, by name. With llama-cpp-python installed, it is asked how it encodes text, before anything is
    written.

    Then: `llama-cli -m OUT -p "..."`, or with pictures
    `llama-mtmd-cli -m OUT --mmproj MMPROJ --image picture.png -p "..."`.
    """
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from lop.workflows.harness_results import measured_lines
    from pruning.cutting.gguf.export import export_gguf
    from pruning.cutting.gguf.export_card import stored_as, write_export_card
    from pruning.cutting.gguf.modelfile import write_modelfile
    from pruning.cutting.gguf.quantise import PLAIN_FILE_TYPES, export_quantised
    from pruning.cutting.gguf.type_files import read_tensor_types, tensor_type_file

    if tensor_types is not None and quantised is None:
        raise InputError("--tensor-types is for --quantise", values=str(tensor_types))
    if types_out is not None and quantised is not None:
        raise InputError(
            "--types-out is for a quantiser that runs later, and --quantise quantises now",
            values=f"--types-out {types_out} --quantise {quantised.value}",
            remedy="Give one of them",
        )
    chosen = {} if tensor_types is None else read_tensor_types(tensor_types)
    planned = _planned(model, plan, types_of_bits, types_out, tensor_type, quantised)
    with bar("writing", DownloadColumn(), TransferSpeedColumn()) as on_bytes:
        choices: dict[str, Any] = {
            "mmproj": mmproj,
            "context_length": context,
            "pre_tokenizer": pre_tokenizer,
            "class_token": class_token,
            "checks_encoding": check,
            "on_bytes": on_bytes,
        }
        if quantised is None:
            types = {} if types_out is None else {types_out: tensor_type_file(planned).encode()}
            export = export_gguf(model, out, tensor_type=tensor_type, beside=types, **choices)
        else:
            export = export_quantised(model, out, quantised, tensor_types=chosen, planned=planned, **choices)
    stored = quantised.value if quantised is not None else stored_as(export, tensor_type)
    measured = measured_lines(model)
    written = write_export_card(model, out, mmproj, stored, measured=measured, on_note=warn) if card else None
    modelfile = write_modelfile(out, mmproj) if card else None
    for note in export.notes:
        warn(note)
    if export.num_f16_fallbacks:
        warn(f"{export.num_f16_fallbacks} matrices are f16: their rows are no multiple of 32, which q8_0 needs")
    if export.encoding_differences:
        warn(
            f"llama.cpp encodes {len(export.encoding_differences)} texts with special tokens or leading spaces "
            f"otherwise than transformers, the first {export.encoding_differences[0].text!r}"
        )
    if json:
        others = (("card", written), ("modelfile", modelfile), ("tensor_types", types_out))
        beside = {name: None if x is None else str(x) for name, x in others}
        print_json(_document(export, out, mmproj) | beside)
        return
    widths = export.sizes.ffn_widths
    print_line(
        f"wrote {out}: {len(widths)} layers, FFN widths {min(widths)} to {max(widths)}, architecture "
        f"{export.architecture}, {export.file_bytes:,} bytes"
    )
    if written is not None:
        print_line(f"wrote {written}: a model card")
    if types_out is not None:
        base = PLAIN_FILE_TYPES[0]
        print_line(f"wrote {types_out}: for `llama-quantize --tensor-type-file {types_out} {out} QUANTISED {base}`")
    if modelfile is not None:
        print_line(f"wrote {modelfile}: for `ollama create NAME -f {modelfile}`")
    print_line(f"tensors by type: {', '.join(f'{count} {name}' for name, count in sorted(export.types.items()))}")
    if mmproj is not None:
        print_line(f"wrote {mmproj}: vision tower and projector, {export.mmproj_bytes:,} bytes")


def _planned(
    model: Path,
    plan: Path | None,
    types_of_bits: str | None,
    types_out: Path | None,
    tensor_type: TensorType,
    quantised: Quantisation | None,
) -> dict[str, str]:
    """Types of matrices by their names in the file, as the plan says; none without one."""
    from pruning.cutting.gguf.planned_types import DEFAULT_TYPES, planned_types, read_types_of_bits
    from pruning.planning.plan import PruningPlan

    if plan is None:
        for name, value in (("--bits-as", types_of_bits), ("--types-out", types_out)):
            if value is not None:
                raise InputError(f"{name} is for --plan", values=str(value))
        return {}
    if quantised is None and types_out is None:
        raise InputError(
            "bits of a plan say types for llama.cpp's quantiser",
            values=f"--plan {plan}",
            remedy="Give --quantise or --types-out; a folder that is in few bits already is exported without --plan",
        )
    if quantised is None and tensor_type is TensorType.Q8_0:
        raise InputError(
            "llama.cpp's quantiser rounds plain numbers",
            values="--type q8_0 --types-out",
            remedy="Export as f16, bf16 or f32",
        )
    stored_as = tensor_type if quantised is None else TensorType.F16
    types = DEFAULT_TYPES if types_of_bits is None else read_types_of_bits(types_of_bits)
    return planned_types(model, PruningPlan.load(plan), types, stored_as=stored_as)


def _document(export: "GgufExport", out: Path, mmproj: Path | None) -> dict[str, object]:
    """The result as JSON; `tokenizer_differences` is null where llama.cpp was not asked."""
    return {
        "out": str(out),
        "file_bytes": export.file_bytes,
        "mmproj": None if mmproj is None else str(mmproj),
        "mmproj_bytes": export.mmproj_bytes,
        "architecture": export.architecture,
        "ffn_widths": export.sizes.ffn_widths,
        "heads": export.sizes.heads,
        "kv_heads": export.sizes.kv_heads,
        "tensors": export.num_tensors,
        "types": export.types,
        "f16_fallbacks": export.num_f16_fallbacks,
        "tokenizer_differences": None if export.encoding_differences is None else len(export.encoding_differences),
        "notes": export.notes,
    }
