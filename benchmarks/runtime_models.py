"""The small checkpoints of the runtimes benchmark: one of each family, dense and pruned.

Weights are random. Each layer is cut differently, an FFN and an attention are skipped.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runtime_cell import gguf_of
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.options import TensorType
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.errors import InputError
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget
from pruning.planning.ranking import Ranking
from tests.tiny_models.hub_folders import save_hub_folder
from tests.tiny_models.processor import tiny_processor, tiny_tokenizer
from tests.tiny_models.wide import wide_model

KINDS = ("dense", "pruned")

TEXT = ("llama", "mistral", "qwen2", "qwen3", "phi3", "phi", "gemma2", "gemma3-text")
LLAVA = ("llava-llama", "llava-mistral", "llava-qwen2", "llava-qwen3")
HUB: Mapping[str, str] = {
    "llava-onevision": "LLaVA-OneVision",
    "qwen2-vl": "Qwen2-VL",
    "qwen2.5-vl": "Qwen2.5-VL",
    "qwen3-vl": "Qwen3-VL",
    "internvl-qwen2": "InternVL3",
    "idefics3": "SmolVLM",
    "smolvlm": "SmolVLM2",
    "mistral3": "Mistral-3",
    "gemma3": "Gemma-3",
}
"""Families whose processors are the hub's own, by their folder in tests/tiny_models/hub_folders.py."""
FAMILIES = (*TEXT, *LLAVA, *HUB)

TEXT_ALONE_IN_VLLM = ("qwen3-vl", "idefics3", "smolvlm")
"""vLLM serves their text, and not their pictures (docs/vllm.md)."""


def write_family(family: str, folder: Path) -> dict[str, Any]:
    """`dense` and `pruned` of a family in `folder`, anew."""
    dense = _empty(folder) / "dense"
    if family in HUB:
        save_hub_folder(dense, HUB[family], build=wide_model)
    else:
        wide_model(family).save_pretrained(dense)
        (tiny_processor() if family in LLAVA else tiny_tokenizer()).save_pretrained(dense)
    return prune(dense, folder / "pruned", family, _mixed)


def _empty(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def prune(dense: Path, out: Path, name: str, cut: Callable[[ModelAnatomy], Architecture]) -> dict[str, Any]:
    """Write `out` anew: what `cut` keeps of `dense`, whichever channels and groups. Returns what each layer keeps."""
    if out.exists():
        shutil.rmtree(out)
    anatomy = read_anatomy(dense)
    rng = np.random.default_rng(0)
    widths = [rng.random(x.ffn_width) for x in anatomy.layers]
    groups = [rng.random(x.num_kv_groups) for x in anatomy.layers]
    ranking = Ranking.from_scores(anatomy, widths, group_scores=groups)
    architecture = cut(anatomy)
    plan = make_plan(
        anatomy,
        architecture,
        model_id=name,
        target=PlanTarget(sparsity=0.5),
        method="test",
        ranking=PlanRanking(sha256=ranking.sha256),
    )
    prune_checkpoint(dense, plan, ranking, out)
    return {"ffn_widths": list(anatomy.ffn_widths(architecture))}


def _mixed(anatomy: ModelAnatomy) -> Architecture:
    """Four layers: other widths, a KV group less in the first, no FFN in the second, no attention in the third."""
    groups = [x.num_kv_groups for x in anatomy.layers]
    return anatomy.architecture([32, 0, 96, 64], [max(1, groups[0] - 1), groups[1], 0, groups[3]])


def write_gguf(folder: Path) -> str | None:
    """Export a checkpoint for llama.cpp in float32; what the export says if it refuses."""
    file = gguf_of(folder)
    file.unlink(missing_ok=True)
    try:
        export_gguf(folder, file, tensor_type=TensorType.F32, checks_encoding=False)
    except InputError as error:
        return f"lop export gguf: {error}".splitlines()[0][:300]
    return None
