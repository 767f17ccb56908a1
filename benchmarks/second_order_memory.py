"""The part `memory` of `benchmarks.second_order`: peak memory and minutes of `lop apply --reconstruct`.

The model is the smaller one of `make bench-apply`, 1.7 GB in bfloat16: eight decoder layers of 5,504 channels, and
LLaVA-1.5's vision tower, random weights. Half of its decoder goes, channels and KV groups of a random ranking. It is
reconstructed on conversations of the reference, whose pictures are 576 tokens here. What is measured is the process of
`lop apply` as a whole, started by one that holds nothing (`benchmarks.child_process`). It may take 2.0 GB,
of which Python and its libraries are half a gigabyte: what it reads does not fit.
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.apply import SMALL, uneven_plan
from benchmarks.child_process import measure
from benchmarks.random_checkpoint import LlavaShape, random_ranking, remove, write_random_llava
from benchmarks.second_order_figures import Found
from benchmarks.steps import Steps
from benchmarks.subject import REFERENCE
from lop.applying import ranking_path
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import weight_files
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE
from pruning.data.conversations import calibration_id, load_conversations

RUNS = ("lop.commands.apply",)
"""What runs in a process of its own."""

DATA = REFERENCE / "data" / "calibration.json"
NUM_CONVERSATIONS = 78
"""Some 55,000 tokens, ten for each input of a down projection: as many as `lop apply` tells its users to take."""


def memory_rows(
    folder: Path, steps: Steps, num_conversations: int | None = None, shape: LlavaShape = SMALL
) -> list[dict[str, Any]]:
    """One row; what `lop apply` needs lies in `folder` meanwhile."""
    number = num_conversations or NUM_CONVERSATIONS
    key = [str(shape), calibration_id(load_conversations(DATA, number))]
    code = ("benchmarks.second_order_memory", *RUNS)
    found = steps.call("memory", key, partial(measured, folder, shape, number), modules=code)
    return [found.document]


def memory_figures(rows: Sequence[dict[str, Any]]) -> Found:
    """Of the row that took most."""
    return {
        "reconstruct_peak_rss_gb": {row["model"]: row["peak_rss_bytes"] / 1e9 for row in rows},
        "reconstruct_minutes": {row["model"]: row["apply_seconds"] / 60 for row in rows},
        "reconstruct_tokens": {row["model"]: row["calibration_tokens"] for row in rows},
    }


def measured(folder: Path, shape: LlavaShape, num_conversations: int) -> dict[str, Any]:
    """One run from nothing, so that peak and seconds are of a process that did all of it."""
    work = folder / ".memory"
    remove(work)
    source, out, plan_file = work / "source", work / "out", work / "plan.json"
    write_seeing_llava(source, shape)
    anatomy = read_anatomy(source)
    ranking = random_ranking(anatomy)
    plan_file.write_text(uneven_plan(anatomy, ranking).to_json())
    ranking_path(plan_file).write_bytes(ranking.to_bytes())
    files = ["--plan", str(plan_file), "--model", str(source), "--out", str(out)]
    data = ["--reconstruct", str(DATA), "--conversations", str(num_conversations)]
    applied = measure([sys.executable, "-m", "lop.cli", "apply", *files, *data, "--json"])
    solved = json.loads(applied.stdout)["reconstruction"]
    row = {
        "part": "memory",
        "model": "random-llava",
        "input_bytes": sum(path.stat().st_size for path in weight_files(source)),
        "output_bytes": sum(path.stat().st_size for path in weight_files(out)),
        "decoder_layers": shape.num_layers,
        "ffn_width": shape.ffn_width,
        "conversations": num_conversations,
        "calibration_tokens": solved["tokens"],
        "projections": solved["projections"],
        "lost_output": solved["lost_output"],
        "lost_output_without": solved["lost_output_without"],
        "peak_rss_bytes": applied.peak_rss_bytes,
        "apply_seconds": applied.seconds,
    }
    remove(work)
    return row


def write_seeing_llava(folder: Path, shape: LlavaShape) -> Path:
    """A random LLaVA with the reference's tokenizer whose processor makes the pictures that its vision tower takes.

    The tokenizer gets a name for every embedding; no text is encoded with those that are new.
    """
    write_random_llava(folder, shape, companions=REFERENCE / "model", max_shard_size=MAX_SHARD_SIZE)
    config = json.loads((folder / "config.json").read_text())
    config["image_token_index"] = json.loads((REFERENCE / "model" / "config.json").read_text())["image_token_index"]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    path = folder / "processor_config.json"
    processor, vision = json.loads(path.read_text()), config["vision_config"]
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    processor["image_processor"] |= {"crop_size": size, "size": size}
    path.write_text(json.dumps(processor | {"patch_size": vision["patch_size"]}, indent=2))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokens = tokenizer["model"]["vocab"]
    tokens |= {f"<unused-{number}>": number for number in range(len(tokens), shape.vocab_size)}
    path.write_text(json.dumps(tokenizer))
    return folder
