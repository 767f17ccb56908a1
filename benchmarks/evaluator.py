"""Evaluations per second and peak memory of the evaluator, against deep copy + cut + full forward.

Both score the same configurations on the same conversations with the same model in one run: those that a search at half
of the FFN channels asked for, in its order, and random ones, which share no layers. The naive way may keep the dense
model's answers too; it copies the model, cuts it, and runs all of it, vision tower and whole-sequence logits included,
with one torch thread and with as many as there are cores: the faster of the two counts. Two twins of the model take
part as well, each against the naive way on itself in the same type: one in bfloat16, and one whose vocabulary has the
49,152 words of SmolLM2 instead of a few hundred. Memory is the growth of a new process's peak resident set (Linux
only); the summary is of the default bound, small bounds drown in one batch's activations on a model of 8 MB.
"""

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.machine import write_results
from lop.workflows.compute import load_for_compute
from mcts.search import SharedKnowledge, TargetSearch
from mcts.sensitivity import scan_sensitivity
from mcts.settings import SearchSettings
from pruning.allocators.random_search import ChoiceSampler
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import anatomy_of, read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.surgery import cut_model
from pruning.data.batches import Batch, make_batches
from pruning.data.conversations import load_conversations
from pruning.forward.prefix_cache import LEAST_CACHE_BYTES
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.importance import channel_scores
from pruning.measuring.metrics import Metrics, Widths
from pruning.measuring.statistics import StatisticsKind, measure_statistics
from pruning.planning.ffn_spaces import ffn_levels
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.space import Choice
from pruning.planning.target import ffn_parameter_budget, ffn_parameter_limits

REFERENCE = Path(__file__).parent.parent / "reference"
SPARSITY = 0.5
LEAST_EVALUATIONS, MOST_EVALUATIONS = 10, 100
"""For the peak of memory: until the cache is full."""

LARGE_VOCABULARY = 49_152

CACHE_BOUNDS = (0, 64 * 2**20, LEAST_CACHE_BYTES)


class NaiveEvaluator:
    """Deep copy, cut, full forward."""

    def __init__(self, model: Any, batches: Sequence[Batch], ranking: Ranking) -> None:
        self._model = model
        self._batches = batches
        self._anatomy = anatomy_of(model)
        self._ranking = ranking
        self._dense = [self._log_probabilities(model, batch) for batch in batches]

    @torch.inference_mode()
    def evaluate(self, widths: Widths) -> Metrics:
        """Metrics of one configuration [L]."""
        pruned = copy.deepcopy(self._model)
        cut_model(pruned, self._anatomy.architecture(widths), self._ranking)
        kl = nll = 0.0
        tokens = answers = correct = 0
        for batch, log_dense in zip(self._batches, self._dense, strict=True):
            log_p = self._log_probabilities(pruned, batch)
            kl += float((log_dense.exp() * (log_dense - log_p)).sum())
            start = 0
            for span in batch.spans:
                stop = start + span.stop - span.start
                targets = batch.inputs["input_ids"][span.row, span.start : span.stop]
                nll -= float(log_p[start:stop].gather(1, targets[:, None]).sum())
                correct += bool((log_p[start:stop].argmax(dim=1) == targets).all())
                start = stop
            tokens += start
            answers += len(batch.spans)
        return Metrics(kl / tokens, nll / tokens, correct / answers, tokens, answers)

    @torch.inference_mode()
    def _log_probabilities(self, model: Any, batch: Batch) -> torch.Tensor:
        logits = model(**batch.inputs, use_cache=False).logits
        return torch.log_softmax(
            torch.cat([logits[span.row, span.start - 1 : span.stop - 1] for span in batch.spans]).float(), dim=-1
        )


def main(
    reference: Annotated[Path, typer.Option(help="Folder with model/ and data/calibration.json.")] = REFERENCE,
    conversations: Annotated[int, typer.Option(min=1, help="Calibration conversations.")] = 32,
    evaluations: Annotated[int, typer.Option(min=2, help="Configurations of the search.")] = 100,
    naive: Annotated[int, typer.Option(min=1, help="Of these, scored the naive way too.")] = 25,
    memory_bound: Annotated[int | None, typer.Option(hidden=True, help="Measure memory with this cache bound.")] = None,
    ranking_file: Annotated[Path | None, typer.Option(hidden=True, help="Ranking to measure memory with.")] = None,
) -> None:
    """Write results/evaluator.json."""
    if memory_bound is not None and ranking_file is not None:
        given = Ranking.from_bytes(ranking_file.read_bytes())
        print(json.dumps(_measure_memory(reference, conversations, memory_bound, given)))  # noqa: T201
        return
    batches, ranking, anatomy = _load(reference, conversations)
    searched = _configurations_of_a_search(reference, batches, ranking, anatomy, evaluations)
    space = ffn_levels(anatomy)
    sampler = ChoiceSampler(ffn_parameter_limits(anatomy, space, _budget(anatomy)))
    rng = np.random.default_rng(0)
    drawn = [space.units_of(sampler.draw(rng)) for _ in range(evaluations)]
    rows: list[dict[str, Any]] = []
    for name, configurations in (("search", searched), ("random", drawn)):
        rows += _compare(name, reference / "model", batches, ranking, configurations, naive)
    with TemporaryDirectory() as folder:
        few = searched[: max(2, evaluations // 4)]
        twins = {
            "float32": reference / "model",
            "bfloat16": _in_bfloat16(reference / "model", Path(folder) / "bfloat16"),
            "large vocabulary": _with_large_vocabulary(reference / "model", Path(folder) / "vocabulary"),
        }
        for name, twin in twins.items():
            rows += _compare(name, twin, batches, ranking, few, naive)
        file = Path(folder) / "ranking.safetensors"
        file.write_bytes(ranking.to_bytes())
        for bound in CACHE_BOUNDS:
            command = [sys.executable, "-m", "benchmarks.evaluator", "--reference", str(reference)]
            command += ["--conversations", str(conversations)]
            command += ["--memory-bound", str(bound), "--ranking-file", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    summary: dict[str, Any] = {
        "speedup_vs_naive": _speedup(rows, "search"),
        "speedup_vs_naive_random": _speedup(rows, "random"),
        "speedup_vs_naive_1_thread": _speedup(rows, "search", "naive-1-thread"),
        "speedup_vs_naive_bfloat16": _speedup(rows, "bfloat16"),
        "speedup_vs_naive_large_vocabulary": _speedup(rows, "large vocabulary"),
        "bf16_over_f32_seconds": _rates(rows, "float32")["lop"] / _rates(rows, "bfloat16")["lop"],
        "peak_memory_ratio": next(
            row["peak_memory_ratio"] for row in rows if row.get("cache_bound_bytes") == LEAST_CACHE_BYTES
        ),
        "peak_over_bound_bytes": max(row["peak_over_bound_bytes"] for row in rows if "peak_over_bound_bytes" in row),
        "largest_kl_difference": max(row.get("largest_kl_difference", 0.0) for row in rows),
    }
    summary["holds"] = {
        "speedup_vs_naive_at_least_4": summary["speedup_vs_naive"] >= 4.0,
        "peak_memory_ratio_at_most_1.5": summary["peak_memory_ratio"] <= 1.5,
    }
    path = write_results("evaluator", summary, rows)
    print(json.dumps({**summary, "results": str(path)}))  # noqa: T201


def _in_bfloat16(model: Path, folder: Path) -> Path:
    """The checkpoint `model` as hub checkpoints are stored."""
    load_model(model).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _with_large_vocabulary(model: Path, folder: Path) -> Path:
    """The checkpoint `model` with more words, which its data never use."""
    wide = load_model(model)
    wide.resize_token_embeddings(LARGE_VOCABULARY)
    wide.save_pretrained(folder)
    return folder


def _compare(
    configurations_name: str,
    model: Path,
    batches: Sequence[Batch],
    ranking: Ranking,
    configurations: list[Widths],
    naive: int,
) -> list[dict[str, Any]]:
    """One row an evaluator. The two take turns, so that a machine that slows down slows both."""
    ranking = replace(ranking, fingerprint=read_anatomy(model).fingerprint)  # a twin's channels are those of the model
    ours = ConfigurationEvaluator(load_for_compute(model), batches, ranking)
    theirs = NaiveEvaluator(load_for_compute(model), batches, ranking)
    ours.evaluate(ours.dense_widths)
    theirs.evaluate(ours.dense_widths)
    cores = torch.get_num_threads()
    step = max(1, len(configurations) // naive)
    seconds: dict[str, list[float]] = {"lop": [], "naive-1-thread": [], "naive-all-threads": []}
    difference = 0.0
    for index, widths in enumerate(configurations):
        measured = _timed(ours.evaluate, widths, seconds["lop"])
        if index % step:
            continue
        for name, threads in (("naive-1-thread", 1), ("naive-all-threads", cores)):
            torch.set_num_threads(threads)
            expected = _timed(theirs.evaluate, widths, seconds[name])
            difference = max(difference, abs(measured.kl - expected.kl))
        torch.set_num_threads(cores)
    return [
        {
            "configurations": configurations_name,
            "evaluator": evaluator,
            "evaluations": len(spent),
            "seconds": sum(spent),
            "evaluations_per_second": len(spent) / sum(spent),
            "largest_kl_difference": difference,
        }
        for evaluator, spent in seconds.items()
    ]


def _speedup(rows: Sequence[dict[str, Any]], configurations: str, naive: str | None = None) -> float:
    """Against the faster of the naive ways, or against the one that is named."""
    rate = _rates(rows, configurations)
    ours = rate.pop("lop")
    return ours / (max(rate.values()) if naive is None else rate[naive])


def _rates(rows: Sequence[dict[str, Any]], configurations: str) -> dict[str, float]:
    """Evaluations per second of each evaluator."""
    found = (row for row in rows if row.get("configurations") == configurations)
    return {row["evaluator"]: float(row["evaluations_per_second"]) for row in found}


def _timed(evaluate: Callable[[Widths], Metrics], widths: Widths, seconds: list[float]) -> Metrics:
    started = time.perf_counter()
    metrics = evaluate(widths)
    seconds.append(time.perf_counter() - started)
    return metrics


def _configurations_of_a_search(
    reference: Path, batches: Sequence[Batch], ranking: Ranking, anatomy: ModelAnatomy, evaluations: int
) -> list[Widths]:
    """What a search at SPARSITY asks for, in its order; the scan before it is not counted."""
    evaluate = ConfigurationEvaluator(load_model(reference / "model"), batches, ranking)
    space = ffn_levels(anatomy)

    def score(choices: Sequence[Choice]) -> list[Metrics]:
        return evaluate([space.architecture(choice) for choice in choices])

    settings = SearchSettings(sparsities=(SPARSITY,), num_evaluations=evaluations)
    (target,) = settings.resolve_targets(anatomy)
    limits = ffn_parameter_limits(anatomy, space, target.budget)
    search = TargetSearch(limits, target, score, settings, SharedKnowledge(scan_sensitivity(space, score), []))
    search.run()
    return [space.units_of(choice) for choice in search.scored]


def _measure_memory(reference: Path, conversations: int, bound: int, ranking: Ranking) -> dict[str, Any]:
    """Fill the cache by random configurations in a process that does nothing else."""
    batches = _batches(reference, conversations)
    torch.zeros(64, 64) @ torch.zeros(64, 64)  # what torch itself sets up is not the evaluator's
    before = _reset_peak_memory()
    model = load_model(reference / "model")
    anatomy = anatomy_of(model)
    model_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    evaluate = ConfigurationEvaluator(model, batches, ranking, cache_bytes=bound)
    space = ffn_levels(anatomy)
    sampler = ChoiceSampler(ffn_parameter_limits(anatomy, space, _budget(anatomy)))
    rng = np.random.default_rng(0)
    for evaluations in range(1, MOST_EVALUATIONS + 1):
        before_it = evaluate.cached_bytes
        evaluate.evaluate(space.units_of(sampler.draw(rng)))
        if evaluate.cached_bytes == before_it and evaluations >= LEAST_EVALUATIONS:
            break
    peak = _status_bytes("VmHWM") - before
    return {
        "cache_bound_bytes": bound,
        "cached_bytes": evaluate.cached_bytes,
        "model_bytes": model_bytes,
        "peak_bytes": peak,
        "peak_memory_ratio": peak / (model_bytes + bound),
        "peak_over_bound_bytes": peak - bound,
    }


def _reset_peak_memory() -> int:
    """Forget the peak so far (proc(5), clear_refs: 5); returns the bytes resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    """VmRSS (resident now) or VmHWM (the most since the last reset)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _load(reference: Path, conversations: int) -> tuple[list[Batch], Ranking, ModelAnatomy]:
    model = load_model(reference / "model")
    batches = _batches(reference, conversations)
    anatomy = anatomy_of(model)
    statistics = measure_statistics(StatisticsKind.ACTIVATIONS, model, batches)
    return batches, Ranking.from_scores(anatomy, channel_scores(statistics)), anatomy


def _batches(reference: Path, conversations: int) -> list[Batch]:
    loaded = load_conversations(reference / "data" / "calibration.json")[:conversations]
    return make_batches(loaded, load_processor(reference / "model"))


def _budget(anatomy: ModelAnatomy) -> int:
    return ffn_parameter_budget(anatomy, SPARSITY, Scope.FFN, round_to=8)


if __name__ == "__main__":
    typer.run(main)
