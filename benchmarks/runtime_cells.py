"""Next tokens, speed and memory of dense and pruned checkpoints in each runtime; every cell runs in its own process."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child_process import ROOT, measure
from benchmarks.runtime_large import VOCABULARY, write_large
from benchmarks.runtime_models import KINDS, TEXT_ALONE_IN_VLLM, write_family, write_gguf
from benchmarks.steps import Steps

PROMPT_TOKENS = 12
SPEED_PROMPT_TOKENS = 256
FASTER = 1.5

REFUSALS = (
    "lop export gguf: ",
    # vLLM 0.32 reads the names of LLaVA's vision tower as transformers 4 wrote them; it serves pruned folders, which
    # go to its transformers backend.
    "There is no module or parameter named 'vision_tower.",
    # Its own LLaVA-OneVision wants tokens of videos, which the tiny tokenizer does not have.
    "Failed to apply prompt replacement for mm_items['video']",
    # And its own Gemma 3 one of line breaks.
    "KeyError: '\\n'",
)
"""What a cell that does not run says where its runtime is known not to take it. Anything else is a failure."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is asked; the defaults are what the result is to show."""

    prompts: int = 200
    layers: int = 16
    vocabulary: int = VOCABULARY
    new_tokens: int = 32
    turns: int = 6


class Cells:
    """Asks runtimes, each by the Python of its environment, and keeps what they say."""

    def __init__(self, work: Path, steps: Steps, pythons: Mapping[str, str], sizes: Sizes) -> None:
        self._work, self._steps, self._sizes = work, steps, sizes
        self.pythons = pythons

    def family_rows(self, family: str) -> list[Row]:
        """A row for each runtime, dense and pruned: whether it runs, and the share of next tokens that are the same."""
        folder = self._work / family
        write = partial(write_family, family, folder)
        self._steps.call(f"{family} models", [str(folder)], write, modules=["benchmarks.runtime_models"])
        asked: Row = {"prompts": _prompts(self._sizes.prompts, PROMPT_TOKENS)}
        if family in TEXT_ALONE_IN_VLLM:
            asked["text_alone"] = True
        rows = []
        for kind in KINDS:
            cells = {name: self._cell(family, name, folder / kind, asked) for name in self.pythons}
            right = cells.pop("lop")["tokens"]
            rows += [{"family": family, "kind": kind, "runtime": name, **_row(x, right)} for name, x in cells.items()]
        return rows

    def speed_rows(self) -> list[Row]:
        """Tokens a second and peak memory of 1B's shape, a row for each runtime."""
        folder, sizes = self._work / "large", self._sizes
        write = partial(write_large, folder, sizes.layers, sizes.vocabulary)
        key = [str(folder), str(sizes.layers), str(sizes.vocabulary)]
        self._steps.call("large models", key, write, modules=["benchmarks.runtime_large"])
        prompt = _prompts(1, SPEED_PROMPT_TOKENS)[0]
        speed = {"prompt": prompt, "new_tokens": sizes.new_tokens, "turns": sizes.turns}
        asked = {"prompts": [prompt[:PROMPT_TOKENS]], "speed": speed}
        of = {name: {kind: self._cell("large", name, folder / kind, asked) for kind in KINDS} for name in self.pythons}
        rows: list[Row] = []
        for name, cells in of.items():
            row: Row = {"shape": "1B", "runtime": name, "runs": not any("refused" in cell for cell in cells.values())}
            if row["runs"]:
                row |= {"same_token": all(cells[kind]["tokens"] == of["lop"][kind]["tokens"] for kind in KINDS)}
                row |= _ratios(**cells)
            rows.append({**row, "cells": cells})
        return rows

    def _cell(self, family: str, runtime: str, folder: Path, asked: Row) -> Row:
        name = f"{family} {folder.name} {runtime}"
        questions = json.dumps(asked)
        ask = partial(self._ask, runtime, folder, questions)
        modules = ["benchmarks.runtime_cell", "benchmarks.runtime_models"]
        key = [str(folder), hashlib.sha256(questions.encode()).hexdigest()[:16]]
        return self._steps.call(name, key, ask, modules=modules).document

    def _ask(self, runtime: str, folder: Path, questions: str) -> Row:
        if runtime == "llama.cpp" and (refused := write_gguf(folder)) is not None:
            return {"refused": refused}
        file = folder.parent / "questions.json"
        file.write_text(questions)
        script = ROOT / "benchmarks" / "runtime_cell.py"
        paths = f"PYTHONPATH={ROOT}:{ROOT / 'integrations' / 'vllm'}"
        command = ["env", paths, self.pythons[runtime], str(script), runtime, str(folder), str(file)]
        try:
            done = measure(command)
        except RuntimeError as error:  # it has died, which is no answer either
            found: Row = {"refused": str(error).splitlines()[-1][:300]}
        else:
            found = {**json.loads(done.stdout.splitlines()[-1]), "peak_rss_bytes": done.peak_rss_bytes}
        if runtime == "lop" and "refused" in found:
            raise RuntimeError(f"lop must run {folder}, it is what the others are compared with: {found['refused']}")
        return found


def _prompts(count: int, length: int) -> list[list[int]]:
    """Random tokens, none of them special."""
    prompts: list[list[int]] = np.random.default_rng(0).integers(7, 250, (count, length)).tolist()
    return prompts


def _row(cell: Mapping[str, Any], right: Sequence[int]) -> Row:
    if "refused" in cell:
        is_known = any(text in cell["refused"] for text in REFUSALS)
        return {"runs": False, "refused": cell["refused"], "is_known": is_known}
    same = sum(a == b for a, b in zip(cell["tokens"], right, strict=True))
    return {"runs": True, "prompts": len(right), "agreement": same / len(right)}


def _ratios(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Row:
    of = {"prefill": "prefill_per_s", "decode": "decode_per_s", "peak_memory": "peak_rss_bytes"}
    return {f"{what}_pruned_over_dense": pruned[key] / dense[key] for what, key in of.items()}


def family_figures(rows: Sequence[Mapping[str, Any]]) -> Row:
    """The worst cell that runs, the cells that neither run nor are known to be refused, and of each runtime the
    families whose pruned models run."""
    running = [row for row in rows if row["runs"]]
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    pruned = {name: sum(x["runtime"] == name and x["kind"] == "pruned" for x in running) for name in runtimes}
    return {
        "agreement_min": min((row["agreement"] for row in running), default=0.0),
        "cells_failed": sum(not row["runs"] and not row["is_known"] for row in rows),
        "families_run_min": min(pruned.values(), default=0),
        **{f"families_run_{name.replace('.', '_')}": count for name, count in pruned.items()},
    }


def speed_figures(rows: Sequence[Mapping[str, Any]]) -> Row:
    """Of the runtimes that run, `lop` itself left out: the least speeds and the most memory, pruned over dense; and how
    many say another token than `lop`, or do not run."""
    theirs = [row for row in rows if row["runs"] and row["runtime"] != "lop"]
    prefill, decode, memory = (
        [row[f"{what}_pruned_over_dense"] for row in theirs] for what in ("prefill", "decode", "peak_memory")
    )
    return {
        "prefill_pruned_over_dense": min(prefill, default=0.0),
        "decode_pruned_over_dense": min(decode, default=0.0),
        "runtimes_1.5_times_faster": sum(min(pair) >= FASTER for pair in zip(prefill, decode, strict=True)),
        "peak_memory_pruned_over_dense": max(memory, default=1.0),
        "speed_runtimes_failed": sum(not row.get("same_token", False) for row in rows),
    }
