"""Pruned checkpoints where users run them: transformers, llama.cpp and vLLM, dense and pruned, family by family.

For each family a small model of random weights is cut differently in every layer, an FFN and an attention skipped, and
each runtime is asked for the next token after 200 random prompts, in float32. `lop.load_pruned` (for the dense model,
transformers) says what is right. What a runtime refuses is a row too, with its reason. `agreement_min` is over the
cells that run, `families_run_min` over the runtimes, pruned models alone.

The second part takes a language model of 1B's shape, cut to half of its decoder, and compares tokens a second and peak
memory, pruned over dense, prompt and answer apart, both in the same run.

Steps that are finished are kept: kill it and run it again. vLLM takes part if its environment is there (`make
test-vllm` makes it; LOP_VLLM_PYTHON names another).
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.child_process import ROOT, measure
from benchmarks.machine import write_results
from benchmarks.runtime_cell import RUNTIMES
from benchmarks.steps import Steps, alone_in
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget
from pruning.planning.ranking import Ranking
from tests.tiny_models.processor import tiny_processor, tiny_tokenizer
from tests.tiny_models.wide import wide_model

WORK = ROOT / "benchmarks" / ".work" / "runtimes"
SEES = ("llava-llama", "llava-mistral", "llava-qwen2")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3-text", *SEES)
KINDS = ("dense", "pruned")
NUM_PROMPTS, PROMPT_TOKENS = 200, 12

LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
"""Llama-3.2-1B's, with 32 query heads and 8 KV groups, and a small vocabulary: the decoder is what is cut."""
SPEED = {"new_tokens": 32, "turns": 3}
SPEED_PROMPT_TOKENS = 256

BARS = {"agreement_min": 0.99, "families_run_min": 5, "runtimes_1.5_times_faster": 2}


def main(
    families: Annotated[list[str] | None, typer.Option("--family", help="Only these; nothing is stored then.")] = None,
    speed: Annotated[bool, typer.Option(help="The 1B-shaped model as well; nothing is stored without it.")] = True,
) -> None:
    """Write results/runtimes.json."""
    with alone_in(WORK) as lock:
        steps = Steps(WORK / "steps", lock=lock, renew=True)
        pythons = _pythons()
        rows = [row for family in families or FAMILIES for row in family_rows(family, pythons, steps)]
        found = speed_rows(pythons, steps) if speed else []
    summary = figures(rows, found)
    if families or not speed:
        print(json.dumps({**summary, "rows": [*rows, *found]}, indent=1))  # noqa: T201
        return
    path = write_results("runtimes", summary, [*rows, *found], runs=("benchmarks.runtime_cell",))
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def _pythons() -> dict[str, str]:
    """The Python of each runtime that is there."""
    vllm = os.environ.get("LOP_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
    return {
        name: vllm if name == "vllm" else sys.executable for name in RUNTIMES if name != "vllm" or Path(vllm).exists()
    }


def family_rows(family: str, pythons: Mapping[str, str], steps: Steps) -> list[dict[str, Any]]:
    """A row for each runtime, dense and pruned."""
    folder = _written(WORK / family, partial(_write_family, family))
    rng = np.random.default_rng(0)
    questions = {"prompts": rng.integers(7, 250, (NUM_PROMPTS, PROMPT_TOKENS)).tolist()}
    rows = []
    for kind in KINDS:
        cells = {name: _cell(steps, family, name, python, folder / kind, questions) for name, python in pythons.items()}
        right = cells.pop("lop")["tokens"]
        rows += [{"family": family, "kind": kind, "runtime": name, **_row(x, right)} for name, x in cells.items()]
    return rows


def _row(cell: Mapping[str, Any], right: Sequence[int]) -> dict[str, Any]:
    if "refused" in cell:
        return {"runs": False, "refused": cell["refused"]}
    same = sum(a == b for a, b in zip(cell["tokens"], right, strict=True))
    return {"runs": True, "prompts": len(right), "agreement": same / len(right)}


def speed_rows(pythons: Mapping[str, str], steps: Steps) -> list[dict[str, Any]]:
    """Tokens a second and peak memory of the 1B-shaped model, a row for each runtime."""
    folder = _written(WORK / "large", _write_large)
    rng = np.random.default_rng(0)
    prompt = rng.integers(7, 250, SPEED_PROMPT_TOKENS).tolist()
    questions = {"prompts": [prompt[:PROMPT_TOKENS]], "speed": {"prompt": prompt, **SPEED}}
    rows = []
    for name, python in pythons.items():
        cells = {kind: _cell(steps, "large", name, python, folder / kind, questions) for kind in KINDS}
        if "refused" in cells["dense"] or "refused" in cells["pruned"]:
            rows.append({"shape": "1B", "runtime": name, "runs": False, "cells": cells})
            continue
        ratios = {
            f"{what}_pruned_over_dense": cells["pruned"][key] / cells["dense"][key]
            for what, key in (("prefill", "prefill_per_s"), ("decode", "decode_per_s"), ("peak_rss", "peak_rss_bytes"))
        }
        rows.append({"shape": "1B", "runtime": name, "runs": True, **ratios, "cells": cells})
    return rows


def _cell(
    steps: Steps, family: str, runtime: str, python: str, folder: Path, questions: dict[str, Any]
) -> dict[str, Any]:
    asked = WORK / f"{family}.json"
    asked.write_text(json.dumps(questions))
    script = str(ROOT / "benchmarks" / "runtime_cell.py")

    def run() -> dict[str, Any]:
        done = measure(["env", f"PYTHONPATH={ROOT}", python, script, runtime, str(folder), str(asked)])
        return {**json.loads(done.stdout.splitlines()[-1]), "peak_rss_bytes": done.peak_rss_bytes}

    name = f"{family} {folder.name} {runtime}"
    return steps.call(name, [name, json.dumps(questions)], run, modules=["benchmarks.runtime_cell"]).document


def _written(folder: Path, write: Any) -> Path:
    """`folder`, written once: a run that was killed while it wrote writes it anew."""
    if not (folder / "whole").exists():
        write(folder)
        (folder / "whole").touch()
    return folder


def _write_family(family: str, folder: Path) -> None:
    wide_model(family).save_pretrained(folder / "dense")
    (tiny_processor() if family in SEES else tiny_tokenizer()).save_pretrained(folder / "dense")
    _prune(folder, family, _mixed)


def _write_large(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        **LARGE, num_attention_heads=32, num_key_value_heads=8, vocab_size=len(tokenizer), max_position_embeddings=4096
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    _prune(folder, "large", _half)


def _prune(folder: Path, name: str, cut: Any) -> None:
    anatomy = read_anatomy(folder / "dense")
    rng = np.random.default_rng(0)
    widths = [rng.random(x.ffn_width) for x in anatomy.layers]
    groups = [rng.random(x.num_kv_groups) for x in anatomy.layers]
    ranking = Ranking.from_scores(anatomy, widths, group_scores=groups)
    plan = make_plan(
        anatomy,
        cut(anatomy),
        model_id=name,
        target=PlanTarget(sparsity=0.5),
        method="test",
        ranking=PlanRanking(sha256=ranking.sha256),
    )
    if not (folder / "pruned").exists():
        prune_checkpoint(folder / "dense", plan, ranking, folder / "pruned")


def _mixed(anatomy: ModelAnatomy) -> Architecture:
    """Four layers: other widths, a KV group less in the first, no FFN in the second, no attention in the third."""
    groups = [x.num_kv_groups for x in anatomy.layers]
    return anatomy.architecture([32, 0, 96, 64], [max(1, groups[0] - 1), groups[1], 0, groups[3]])


def _half(anatomy: ModelAnatomy) -> Architecture:
    """Half of every layer, in turns a quarter more and a quarter less."""
    shares = [0.25 if layer % 2 else 0.75 for layer in range(len(anatomy.layers))]
    widths = [int(x.ffn_width * share) for x, share in zip(anatomy.layers, shares, strict=True)]
    return anatomy.architecture(widths, [int(x.num_kv_groups * s) for x, s in zip(anatomy.layers, shares, strict=True)])


def figures(rows: Sequence[Mapping[str, Any]], speeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary, and whether its bars hold."""
    running = [row for row in rows if row["runs"]]
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    pruned = {name: sum(x["runtime"] == name and x["kind"] == "pruned" for x in running) for name in runtimes}
    found: dict[str, Any] = {
        "agreement_min": min((row["agreement"] for row in running), default=0.0),
        "families_run": pruned,
        "families_run_min": min(pruned.values(), default=0),
    }
    holds = {name: found[name] >= BARS[name] for name in ("agreement_min", "families_run_min")}
    if speeds:
        ratios = {
            x["runtime"]: (x["prefill_pruned_over_dense"], x["decode_pruned_over_dense"]) for x in speeds if x["runs"]
        }
        ratios.pop("lop", None)
        found["speed_pruned_over_dense"] = {name: {"prefill": p, "decode": d} for name, (p, d) in ratios.items()}
        fast = sum(min(pair) >= 1.5 for pair in ratios.values())
        holds["runtimes_1.5_times_faster"] = fast >= BARS["runtimes_1.5_times_faster"]
    return found | {"holds": holds}


if __name__ == "__main__":
    typer.run(main)
