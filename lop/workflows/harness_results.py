"""Dense and pruned on an evaluation harness's tasks, as one document beside the checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lop.workflows.harness import Harness, Scores
from pruning.atomic_file import replace_file
from pruning.checkpoints.headers import weight_files
from pruning.errors import InputError
from pruning.measuring.paired_scores import PairedScores, compare_scores


def results_file(folder: Path, harness: Harness) -> Path:
    """Beside the checkpoint, not in it: a pruned folder holds what was cut and what `lop apply --check` knows."""
    resolved = folder.resolve()
    return resolved.with_name(f"{resolved.name}.{harness}.json")


def paired(dense: Scores, pruned: Scores) -> dict[str, dict[str, PairedScores]]:
    """task -> metric -> both models on the same questions; raises InputError if they were asked different ones."""
    found: dict[str, dict[str, PairedScores]] = {}
    for task, metrics in dense.items():
        for metric, of_dense in metrics.items():
            of_pruned = pruned.get(task, {}).get(metric, {})
            if of_dense.keys() != of_pruned.keys():
                raise InputError(
                    "both models must be asked the same questions",
                    values=f"{task}, {metric}: {len(of_dense)} and {len(of_pruned)}",
                )
            questions = sorted(of_dense)
            pair = compare_scores([of_dense[q] for q in questions], [of_pruned[q] for q in questions])
            found.setdefault(task, {})[metric] = pair
    return found


def means(scores: Scores) -> dict[str, dict[str, float]]:
    """task -> metric -> mean."""
    return {
        task: {metric: sum(found.values()) / len(found) for metric, found in metrics.items()}
        for task, metrics in scores.items()
    }


def document(
    model: Path, dense: Path | None, harness: Mapping[str, Any], of_model: Scores, of_dense: Scores | None
) -> dict[str, Any]:
    """Everything that was measured, each question's score included."""
    known: dict[str, Any] = {"model": str(model), "dense": None if dense is None else str(dense), "harness": harness}
    if of_dense is None:
        return {**known, "means": means(of_model), "scores": {"model": of_model}}
    tasks = {task: {name: asdict(x) for name, x in found.items()} for task, found in paired(of_dense, of_model).items()}
    return {**known, "paired": tasks, "scores": {"model": of_model, "dense": of_dense}}


def measured_lines(folder: Path) -> list[str]:
    """What harnesses measured of the checkpoint in `folder`, a line each metric, from the files beside it.

    Files that are older than its weights, or cannot be read, say nothing.
    """
    lines: list[str] = []
    for harness in Harness:
        try:
            path = results_file(folder, harness)
            if path.stat().st_mtime >= max(x.stat().st_mtime for x in weight_files(folder)):
                lines += _lines(harness, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return lines


def _lines(harness: Harness, found: Mapping[str, Any]) -> list[str]:
    if "paired" not in found:
        return [
            f"- {task}, {metric} ({harness}): {mean:.4g}"
            for task, means_of in found["means"].items()
            for metric, mean in means_of.items()
        ]
    lines = []
    for task, metrics in found["paired"].items():
        for metric, x in metrics.items():
            share, interval = x["percent_of_dense"], x["interval"]
            of_dense = "" if share is None else f", {share:.1f}% of it"
            within = "" if interval is None else f" (95% interval {interval[0]:.1f} to {interval[1]:.1f})"
            lines.append(
                f"- {task}, {metric} ({harness}, {x['questions']:,} questions): {x['pruned']:.4g}, the dense model "
                f"{x['dense']:.4g}{of_dense}{within}"
            )
    return lines


def write_results(path: Path, found: Mapping[str, Any]) -> None:
    """Whole or not at all; a file from an earlier run is replaced."""
    replace_file(path, (json.dumps(found, indent=1) + "\n").encode())
