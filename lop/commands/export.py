"""`lop export`: a checkpoint in the format of another runtime."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lop.commands.options import Json
from lop.console.console import bar, print_json, print_line, warn
from pruning.cutting.gguf.options import ClassToken, TensorType

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
            help="How matrices are stored. q8_0 takes about half of f16 and is nearly as good. For less, run "
            "llama.cpp's `llama-quantize` on an f16 file.",
        ),
    ] = TensorType.F16,
    mmproj: Annotated[
        Path | None,
        typer.Option(
            help="New file for the vision tower and projector of a LLaVA (model_type llava: LLaVA-1.5 and its like). "
            "Default: the language model only."
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
            help="For CLIP towers: where your llama.cpp puts the class token. Releases since May 2025 put it last "
            "(ggml-org/llama.cpp#25814).",
        ),
    ] = ClassToken.LAST,
    check: Annotated[
        bool,
        typer.Option(help="If llama-cpp-python is installed: refuse a tokenizer that llama.cpp understands otherwise."),
    ] = True,
    card: Annotated[
        bool, typer.Option(help="Write README.md, a model card, beside the file, unless there is one already.")
    ] = True,
    json: Json = False,
) -> None:
    """Write GGUF files for llama.cpp, Ollama, LM Studio and others. Needs the gguf extra.

    Layers of different widths and heads are kept as they are (architecture `deci`). What llama.cpp would compute
    otherwise is refused, by name. With llama-cpp-python installed, it is asked how it encodes text, before anything is
    written.

    Then: `llama-cli -m OUT -p "..."`, or with pictures
    `llama-mtmd-cli -m OUT --mmproj MMPROJ --image picture.png -p "..."`.
    """
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from pruning.cutting.gguf.export import export_gguf
    from pruning.cutting.gguf.export_card import write_export_card

    with bar("writing", DownloadColumn(), TransferSpeedColumn()) as on_bytes:
        export = export_gguf(
            model,
            out,
            tensor_type=tensor_type,
            mmproj=mmproj,
            context_length=context,
            pre_tokenizer=pre_tokenizer,
            class_token=class_token,
            checks_encoding=check,
            on_bytes=on_bytes,
        )
    written = write_export_card(model, out, mmproj, tensor_type) if card else None
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
        print_json(_document(export, out, mmproj) | {"card": None if written is None else str(written)})
        return
    widths = export.sizes.ffn_widths
    print_line(
        f"wrote {out}: {len(widths)} layers, FFN widths {min(widths)} to {max(widths)}, architecture "
        f"{export.architecture}, {export.file_bytes:,} bytes"
    )
    if written is not None:
        print_line(f"wrote {written}: a model card")
    if mmproj is not None:
        print_line(f"wrote {mmproj}: vision tower and projector, {export.mmproj_bytes:,} bytes")


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
        "f16_fallbacks": export.num_f16_fallbacks,
        "tokenizer_differences": None if export.encoding_differences is None else len(export.encoding_differences),
        "notes": export.notes,
    }
