"""`lop apply` from files to files: peak memory, and time against what a disk must do anyway.

A checkpoint of LLaVA-1.5-7B's shape with random weights is cut to half of its decoder by a plan that differs from
layer to layer, in FFN channels and KV groups, with a random ranking: what is kept is scattered, the worst case for a
disk. The yardstick, in the same run on the same disk: `cp` of the output's weight files, plus reading, one after the
other, as many bytes of the input as are kept. Before each of the two, the page cache is told to forget the files that
it reads; both end with what they wrote on the disk. They take turns; the sums are compared.

The second part cuts a model that is small enough for it both ways: file to file, and as one does by hand, loading,
cutting and saving it through transformers.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.child_process import measure
from benchmarks.families import RUNS as RUN_BY_PYTEST
from benchmarks.families import family_rows
from benchmarks.gguf import gguf_agreement
from benchmarks.machine import write_results
from benchmarks.random_checkpoint import LlavaShape, random_ranking, remove, write_random_llava
from lop.applying import ranking_path
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import weight_files, weights_sha256
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE
from pruning.planning.make_plan import exceeded_limits, make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope

REFERENCE_MODEL = Path(__file__).parent.parent / "reference" / "model"
SPARSITY = 0.5
SMALL = LlavaShape(num_layers=8, hidden_size=2048, ffn_width=5504, num_heads=16)
"""What loads in a few seconds: 1.9 GB, a vision tower of 0.6 GB included."""

_BLOCK_BYTES = 8 * 2**20

Part = tuple[dict[str, Any], list[dict[str, Any]]]
"""What a part adds to the summary, and its rows."""

# Cutting through transformers, as the README's Python does; run in a process of its own.
_BY_HAND = """
import sys
import lop
from pruning.checkpoints.loading import load_model
source, plan, ranking, out = sys.argv[1:]
plan = lop.PruningPlan.load(plan)
model = load_model(source, dtype="auto")
lop.save_pruned(lop.apply_plan(model, plan, ranking), plan, out)
"""

_BY_HAND_RUNS = ("lop.applying", "pruning.checkpoints.loading", "pruning.cutting.prune_checkpoint")
RUNS = ("lop.commands.apply", *_BY_HAND_RUNS, *RUN_BY_PYTEST)
"""What the processes that are measured run, and what the tests of the families run."""


def main(
    layers: Annotated[int, typer.Option(min=1, help="Of the large model; 32 are LLaVA-1.5-7B.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of `lop apply` and of the yardstick.")] = 2,
    disk: Annotated[Path | None, typer.Option(help="Folder to write to; 32 GB are needed.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="Only these parts; nothing is stored then.")] = None,
) -> None:
    """Write results/apply.json."""
    summary: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    parts = _parts(layers, repeats)
    with TemporaryDirectory(dir=disk, prefix="lop-bench-apply.") as folder:
        for name in part or parts:
            figures, found = parts[name](Path(folder))
            summary |= figures
            rows += [{"part": name, **row} for row in found]
    if part:
        print(json.dumps({**summary, "rows": rows}, indent=1))  # noqa: T201
        return
    summary["holds"] = {
        "peak_rss_gb_at_most_1.0": summary["peak_rss_gb"] <= 1.0,
        "time_ratio_at_most_2.0": summary["time_ratio"] <= 2.0,
        "same_bytes_as_transformers": summary["same_bytes_as_transformers"],
        "at_least_14_families_all_green": summary["families_green"] == summary["families"] >= 14,
        "gguf_agreement_at_least_0.99": summary["gguf_agreement"] >= 0.99,
    }
    path = write_results("apply", summary, rows, runs=RUNS)
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def _parts(layers: int, repeats: int) -> dict[str, Callable[[Path], Part]]:
    """What is measured, by name; each part gets a folder to write to."""
    return {
        "streaming": lambda folder: measure_streaming(folder, LlavaShape(num_layers=layers), repeats),
        "transformers": lambda folder: compare_with_transformers(folder, SMALL, repeats),
        "families": lambda _: _families(),
        "gguf": gguf_agreement,
    }


def _families() -> Part:
    """The family table: its rows are what the tests of every family say."""
    rows = family_rows()
    return {"families": len(rows), "families_green": sum(row["green"] for row in rows)}, rows


def measure_streaming(folder: Path, shape: LlavaShape, repeats: int) -> Part:
    """Peak memory and time of `lop apply` on a checkpoint of this shape, and the yardstick's time."""
    source, plan_path, plan = _subject(folder / "large", shape)
    out, copy = folder / "out", folder / "copy"
    rows: list[dict[str, Any]] = []
    for turn in range(repeats):
        forget(weight_files(source))
        applied = measure(_lop_apply(source, plan_path, out))
        files = weight_files(out)
        forget([*files, *weight_files(source)])
        copied = _copy(files, copy)
        read = _read(weight_files(source), plan.achieved.disk_bytes)
        rows.append(
            {
                "model": "llava-1.5-7b" if shape == LlavaShape() else f"llava-1.5-7b, {shape.num_layers} layers",
                "turn": turn,
                "input_bytes": sum(path.stat().st_size for path in weight_files(source)),
                "output_bytes": sum(path.stat().st_size for path in files),
                "decoder_sparsity": plan.achieved.removed[Scope.DECODER],
                "peak_rss_bytes": applied.peak_rss_bytes,
                "apply_seconds": applied.seconds,
                "cp_seconds": copied,
                "read_seconds": read,
            }
        )
        remove(out, copy)
    remove(source)
    yardstick = sum(row["cp_seconds"] + row["read_seconds"] for row in rows)
    figures = {
        "peak_rss_gb": max(row["peak_rss_bytes"] for row in rows) / 1e9,
        "time_ratio": sum(row["apply_seconds"] for row in rows) / yardstick,
    }
    return figures, rows


def compare_with_transformers(folder: Path, shape: LlavaShape, repeats: int) -> Part:
    """The same cut on a model that fits in memory: file to file, and loaded, cut and saved."""
    source, plan_path, _ = _subject(folder / "small", shape)
    out = folder / "out"
    by_hand = [sys.executable, "-c", _BY_HAND, str(source), str(plan_path), str(ranking_path(plan_path)), str(out)]
    rows: list[dict[str, Any]] = []
    for turn in range(repeats):
        for method, command in (("lop apply", _lop_apply(source, plan_path, out)), ("transformers", by_hand)):
            forget(weight_files(source))
            # Saving through transformers ends before the disk has it: both wait for that here.
            started = time.perf_counter()
            done = measure(command)
            _sync(weight_files(out))
            seconds = time.perf_counter() - started
            rows.append(
                {
                    "method": method,
                    "turn": turn,
                    "input_bytes": sum(path.stat().st_size for path in weight_files(source)),
                    "peak_rss_bytes": done.peak_rss_bytes,
                    "seconds": seconds,
                    "weights_sha256": weights_sha256(out),
                }
            )
            remove(out)
    remove(source)
    best = {m: min(row["seconds"] for row in rows if row["method"] == m) for m in ("lop apply", "transformers")}
    peak = {m: max(row["peak_rss_bytes"] for row in rows if row["method"] == m) for m in best}
    return {
        "time_vs_transformers": best["lop apply"] / best["transformers"],
        "peak_rss_vs_transformers": peak["lop apply"] / peak["transformers"],
        "same_bytes_as_transformers": len({row["weights_sha256"] for row in rows}) == 1,
    }, rows


def _subject(source: Path, shape: LlavaShape) -> tuple[Path, Path, PruningPlan]:
    """The checkpoint, and beside it the plan (with its ranking) that removes half of its decoder."""
    write_random_llava(source, shape, companions=REFERENCE_MODEL, max_shard_size=MAX_SHARD_SIZE)
    anatomy = read_anatomy(source)
    ranking = random_ranking(anatomy)
    plan = uneven_plan(anatomy, ranking)
    plan_path = source.with_name(f"{source.name}.plan.json")
    plan_path.write_text(plan.to_json())
    ranking_path(plan_path).write_bytes(ranking.to_bytes())
    _sync(weight_files(source))
    return source, plan_path, plan


def uneven_plan(anatomy: ModelAnatomy, ranking: Ranking) -> PruningPlan:
    """Removes half of every layer's parameters, in early layers more of the FFN, in late ones more of the attention."""
    tilt = np.linspace(-0.15, 0.15, anatomy.num_layers)
    layers = list(zip(anatomy.layers, tilt, strict=True))
    groups = [max(1, int(layer.num_kv_groups * (0.5 - x))) for layer, x in layers]
    widths = []
    for layer, kept in zip(anatomy.layers, groups, strict=True):
        attention = layer.parameters - layer.ffn_parameters
        left = layer.parameters * (1 - SPARSITY) - attention * kept / layer.num_kv_groups
        widths.append(int(left / layer.ffn_parameters_per_channel) // 64 * 64)
    target = PlanTarget(sparsity=SPARSITY, scope=Scope.DECODER, round_to=64)
    plan = make_plan(
        anatomy,
        anatomy.architecture(widths, groups),
        model_id="random-llava",
        target=target,
        method="benchmark",
        ranking=PlanRanking(sha256=ranking.sha256),
    )
    exceeded = exceeded_limits(target, plan.achieved)
    if exceeded:
        raise ValueError(f"the plan misses its target: {exceeded}")
    return plan


def _lop_apply(source: Path, plan: Path, out: Path) -> list[str]:
    command = [sys.executable, "-m", "lop.cli", "apply", "--plan", str(plan)]
    return [*command, "--model", str(source), "--out", str(out), "--json"]


def forget(files: Iterable[Path]) -> None:
    """Ask the page cache to drop these files, which are on the disk, so that they are read from there."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _copy(files: Sequence[Path], folder: Path) -> float:
    """Seconds that it takes to copy `files` to the new `folder`, and to have them on the disk."""
    folder.mkdir()
    started = time.perf_counter()
    subprocess.run(["cp", *map(str, files), str(folder)], check=True)  # noqa: S603, S607
    _sync(folder.iterdir())
    return time.perf_counter() - started


def _read(files: Sequence[Path], count: int) -> float:
    """Seconds that it takes to read `count` bytes from the beginning of `files`."""
    started = time.perf_counter()
    block = memoryview(bytearray(_BLOCK_BYTES))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count and (read := file.readinto(block[: min(count, len(block))])):
                count -= read
    return time.perf_counter() - started


def _sync(files: Iterable[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


if __name__ == "__main__":
    typer.run(main)
