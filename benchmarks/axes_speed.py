"""How fast a model runs after half of its decoder was removed: from FFNs alone, and from both halves of every layer.

The model is the 1.7 GB one of `benchmarks.apply` (8 layers, hidden 2048, FFN 5504, 16 heads of KV groups of their own)
with random weights, since speed depends on sizes alone. It is cut to half of its decoder's weights in two ways, by
`prune_checkpoint`:

- `ffn`: every FFN keeps the same part, a quarter; attention stays whole.
- `all`: one layer of the eight is gone, another one skips its attention and a third one its FFN, and the other FFNs and
  attentions keep the same part of what they cost, as `uniform` does.

What runs it is transformers on this machine's CPU, in float32, through `load_pruned` (the dense model through
`load_model`): one prompt, prefill of the whole prompt, then tokens one by one with a KV cache. It is a prompt of text:
the vision tower takes no part. Each measurement is a process of its own, which holds one model; the three models take
turns, and figures are medians over the turns of what is measured in the same turn: shared machines change speed. The
weights that a token needs are streamed from memory once, so rows say how many bytes that is, and at which rate.

`python -m benchmarks.axes_speed` prints the part's figures: ten minutes, 5 GB of disk and 4 GB of memory.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.apply import REFERENCE_MODEL, SMALL, SPARSITY
from benchmarks.child_process import measure
from benchmarks.random_checkpoint import LlavaShape, random_ranking, write_random_llava
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.safetensors_layout import MAX_SHARD_SIZE
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.planning.axis_spaces import SpaceName, fine_space
from pruning.planning.make_plan import exceeded_limits, make_plan
from pruning.planning.plan import Axis, PlanRanking, PlanTarget, PruningPlan
from pruning.planning.scope import Scope
from pruning.planning.space import Decision, Space
from pruning.planning.target import limits_for_sparsity

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RUNS = ("benchmarks.axes_speed",)
"""What the processes run that measure."""

ROUND_TO = 64
TURNS = 5
PROMPT_TOKENS, OUTPUT_TOKENS = 256, 32
DENSE, FFN, ALL = "dense", "ffn", "all"


def speed_at_half(
    *,
    shape: LlavaShape = SMALL,
    turns: int = TURNS,
    prompt_tokens: int = PROMPT_TOKENS,
    output_tokens: int = OUTPUT_TOKENS,
    disk: Path | None = None,
) -> dict[str, Any]:
    """`speed_{prefill, decode}_{ffn, all}_over_dense`, and `speed_{prefill, decode}_all_over_ffn`: tokens a second of
    one model over those of another one, medians over `turns`. A row for each measurement."""
    with TemporaryDirectory(dir=disk, prefix="lop-bench-axes.") as folder:
        models = _models(Path(folder), shape)
        rows = []
        for turn in range(turns):
            names = [*models][turn % len(models) :] + [*models][: turn % len(models)]
            for name in names:
                command = [sys.executable, "-m", "benchmarks.axes_speed", "--measure", str(models[name])]
                command += ["--prompt-tokens", str(prompt_tokens), "--output-tokens", str(output_tokens)]
                done = measure(command)
                found = json.loads(done.stdout.splitlines()[-1])
                rows.append({"model": name, "turn": turn, "peak_rss_bytes": done.peak_rss_bytes, **found})
    return {**speed_figures(rows), "speed_turns": turns, "speed_prompt_tokens": prompt_tokens, "rows": rows}


def speed_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is compared: medians over turns of the quotients within each."""
    by_turn: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_turn.setdefault(row["turn"], {})[row["model"]] = row
    figures: dict[str, Any] = {}
    for what in ("prefill", "decode"):
        of = f"{what}_tokens_per_s"
        for ours, theirs in ((FFN, DENSE), (ALL, DENSE), (ALL, FFN)):
            quotients = [turn[ours][of] / turn[theirs][of] for turn in by_turn.values()]
            figures[f"speed_{what}_{ours}_over_{theirs}"] = statistics.median(quotients)
        figures[f"speed_{what}_dense_tokens_per_s"] = statistics.median(turn[DENSE][of] for turn in by_turn.values())
    return figures


def _models(folder: Path, shape: LlavaShape) -> dict[str, Path]:
    """The dense checkpoint and the two that are cut."""
    source = write_random_llava(folder / DENSE, shape, companions=REFERENCE_MODEL, max_shard_size=MAX_SHARD_SIZE)
    anatomy = read_anatomy(source)
    ranking = random_ranking(anatomy)
    found = {DENSE: source}
    for name, plan in half_plans(anatomy, ranking.sha256).items():
        found[name] = prune_checkpoint(source, plan, ranking, folder / name)
    return found


def half_plans(anatomy: ModelAnatomy, ranking_sha256: str) -> dict[str, PruningPlan]:
    """The two plans that leave half of the decoder: see the module's docstring."""
    ffn = fine_space(anatomy, SpaceName.FFN, round_to=ROUND_TO)
    joint = fine_space(anatomy, SpaceName.ALL, round_to=ROUND_TO)
    first = anatomy.num_layers // 2
    skipped = {Site(first, Sublayer.ATTENTION), Site(first, Sublayer.FFN)}
    skipped |= {Site(first + 1, Sublayer.ATTENTION), Site(first - 1, Sublayer.FFN)}
    axes = (Axis.FFN, Axis.ATTENTION, Axis.SKIP)
    return {
        FFN: _plan(anatomy, _uniform(anatomy, ffn), (Axis.FFN,), ranking_sha256),
        ALL: _plan(anatomy, _uniform(anatomy, _with_skips(joint, skipped)), axes, ranking_sha256),
    }


def _with_skips(space: Space, skipped: set[Site]) -> Space:
    """`space` where the sites `skipped` keep nothing and all others something."""
    decisions: list[Decision] = []
    for decision in space.decisions:
        units = decision.options[0].units
        wanted = units == 0 if decision.sites[0] in skipped else units > 0
        decisions.append(decision.take(np.flatnonzero(wanted)))
    return Space(tuple(decisions), space.dense)


def _uniform(anatomy: ModelAnatomy, space: Space) -> Architecture:
    return space.architecture(uniform_choice(limits_for_sparsity(anatomy, space, SPARSITY, Scope.DECODER)))


def _plan(
    anatomy: ModelAnatomy, architecture: Architecture, axes: tuple[Axis, ...], ranking_sha256: str
) -> PruningPlan:
    target = PlanTarget(sparsity=SPARSITY, scope=Scope.DECODER, round_to=ROUND_TO, space=axes)
    plan = make_plan(
        anatomy,
        architecture,
        model_id="random-llava",
        target=target,
        method="uniform",
        ranking=PlanRanking(sha256=ranking_sha256),
    )
    if exceeded := exceeded_limits(target, plan.achieved):
        raise ValueError(f"the plan misses its target: {exceeded}")
    return plan


def measure_model(folder: Path, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """Tokens a second of the checkpoint in `folder` in this process, after a warm-up of both passes."""
    import torch

    from pruning.checkpoints.loading import load_model, load_pruned

    load = load_model if folder.name == DENSE else load_pruned
    model = load(folder, dtype=torch.float32).eval()
    prompt = torch.ones((1, prompt_tokens), dtype=torch.long)  # which tokens they are takes no time
    _answer(model, prompt[:, :16], 2)
    prefill, decode = _answer(model, prompt, output_tokens)
    streamed = _streamed_bytes(model)
    return {
        "prefill_tokens_per_s": prompt_tokens / prefill.wall,
        "decode_tokens_per_s": output_tokens / decode.wall,
        "prefill_cpu_seconds": prefill.cpu,
        "decode_cpu_seconds": decode.cpu,
        "weight_bytes_a_token": streamed,
        "streamed_gb_per_s": streamed * output_tokens / decode.wall / 1e9,
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True, slots=True)
class _Spent:
    """Seconds by the clock, and of all of this process's threads: where others run too, those say what it took."""

    wall: float
    cpu: float


@dataclass
class _Watch:
    """Times one thing after another."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def lap(self) -> _Spent:
        before = self.wall, self.cpu
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return _Spent(self.wall - before[0], self.cpu - before[1])


def _answer(model: "PreTrainedModel", prompt: Any, output_tokens: int) -> tuple[_Spent, _Spent]:
    """What the prefill took, and `output_tokens` further passes of one token each."""
    import torch

    with torch.inference_mode():
        watch = _Watch()
        out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        prefill = watch.lap()
        for _ in range(output_tokens):
            token = out.logits[:, -1:].argmax(dim=-1)
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        return prefill, watch.lap()


def _streamed_bytes(model: "PreTrainedModel") -> int:
    """Of the decoder's and the head's weights; of the embeddings a token reads a row."""
    language_model, head = model.get_decoder(), model.get_output_embeddings()
    embeddings = model.get_input_embeddings().weight
    weights = [p for p in language_model.parameters() if p is not embeddings] + [*head.parameters()]
    return sum(p.numel() * p.element_size() for p in weights)


def main(
    turns: Annotated[int, typer.Option(min=1, help="Each model is measured once in each.")] = TURNS,
    layers: Annotated[int, typer.Option(min=4, help="Of the decoder.")] = SMALL.num_layers,
    vision_layers: Annotated[int, typer.Option(min=1, help="Of the vision tower, which only takes memory.")] = 24,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = PROMPT_TOKENS,
    output_tokens: Annotated[int, typer.Option(min=1)] = OUTPUT_TOKENS,
    disk: Annotated[Path | None, typer.Option(help="Folder to write to; 5 GB are needed.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--measure", help="Measure this checkpoint alone, in this process.")
    ] = None,
) -> None:
    """Print the part's figures as JSON."""
    if checkpoint is not None:
        print(json.dumps(measure_model(checkpoint, prompt_tokens, output_tokens)))  # noqa: T201
        return
    shape = LlavaShape(
        num_layers=layers,
        hidden_size=SMALL.hidden_size,
        ffn_width=SMALL.ffn_width,
        num_heads=SMALL.num_heads,
        num_vision_layers=vision_layers,
    )
    found = speed_at_half(shape=shape, turns=turns, prompt_tokens=prompt_tokens, output_tokens=output_tokens, disk=disk)
    print(json.dumps(found, indent=1))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
