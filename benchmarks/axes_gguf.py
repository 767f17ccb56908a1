"""A joint plan in llama.cpp: the reference without FFN channels, KV groups and whole sub-layers, asked for next tokens.

The model is the last one of `benchmarks.gguf`: 40% of the FFN channels removed by FLAP with its biases, a KV group of
every other layer, and five sub-layers skipped, among them the first layer's attention and both halves of another layer.
PyTorch runs it in float32 through `load_pruned`, llama.cpp from an f16 file of architecture `deci`.

`python -m benchmarks.axes_gguf` prints the part's figures: two minutes on a quiet core.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.gguf import NUM_PROMPTS, SKIPPED, compare, knowledge_prompts, last_logits, pruned_reference
from pruning.cutting.gguf.options import TensorType

AT_LEAST = 0.99


def gguf_joint(*, num_prompts: int = NUM_PROMPTS, tensor_type: TensorType = TensorType.F16) -> dict[str, Any]:
    """`gguf_joint_agreement`: the share of prompts after which llama.cpp's most likely token is PyTorch's. One row says
    what was kept, and how far logits were apart."""
    import torch

    from pruning.checkpoints.loading import load_processor, load_pruned
    from pruning.cutting.gguf.export import export_gguf

    prompts = knowledge_prompts(num_prompts)
    with TemporaryDirectory(prefix="lop-bench-axes.") as folder:
        pruned = pruned_reference(Path(folder) / "pruned", cuts_groups=True, skipped=SKIPPED)
        tokenizer = load_processor(pruned).tokenizer
        token_ids = [tokenizer(prompt).input_ids for prompt in prompts]
        expected = last_logits(load_pruned(pruned, dtype=torch.float32), token_ids)
        file = pruned.with_suffix(f".{tensor_type}.gguf")
        export = export_gguf(pruned, file, tensor_type=tensor_type)
        found = compare(file, prompts, token_ids, expected)
    row = {
        "type": tensor_type.value,
        "architecture": export.architecture,
        "ffn_widths": export.sizes.ffn_widths,
        "kv_heads": export.sizes.kv_heads,
        "skipped": [f"{site.layer}.{site.sublayer}" for site in SKIPPED],
        **found,
    }
    return {"gguf_joint_agreement": found["agreement"], "gguf_joint_prompts": num_prompts, "rows": [row]}


def main(
    prompts: Annotated[int, typer.Option(min=1, help="Questions that need no picture.")] = NUM_PROMPTS,
    tensor_type: Annotated[TensorType, typer.Option("--type", help="Of the file's weights.")] = TensorType.F16,
) -> None:
    """Print the part's figures as JSON."""
    print(json.dumps(gguf_joint(num_prompts=prompts, tensor_type=tensor_type), indent=1))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
