"""What one evaluation costs: over the bare matrix products of its real tokens, and in a half type over float32.

Bare products are those of every linear layer of the decoder, at the widths that are evaluated, for every token that is
needed, and of the output head for every answer token: random inputs, contiguous weights, nothing in between. They are
computed as the evaluator shares rows out (each on one thread, side by side) and at once on all threads; the faster one
counts. Evaluations begin with a width that none had before, so that no hidden state is known; the dense model's
probabilities are known, as in every search whose cache holds them, and without even those there is a figure of its own.

A half-type checkpoint is loaded as the product loads it, in float32 where it fits; another figure is of one that does
not, whose layers are widened while they run. All take turns.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lop.workflows.compute import load_for_compute
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import load_conversations
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.metrics import Widths
from pruning.planning.ranking import Ranking

RETENTION = 0.8
"""Of the channels that the evaluated configurations keep, about."""


class BareProducts:
    """The matrix products of one evaluation, in float32, and nothing else."""

    def __init__(self, folder: Path, row_sizes: Sequence[tuple[int, int]]) -> None:
        self._view = decoder_view(load_model(folder, dtype=torch.float32))
        self._row_sizes = row_sizes
        self._pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))

    def seconds(self, widths: Widths) -> float:
        """The faster way."""
        weights = [self._weights(layer, width) for layer, width in enumerate(widths)]
        together = [(sum(tokens for tokens, _ in self._row_sizes), sum(answers for _, answers in self._row_sizes))]
        apart = [self._product(weights, *size) for size in self._row_sizes]
        (whole,) = [self._product(weights, *size) for size in together]
        return min(_seconds(lambda: [x.result() for x in [self._pool.submit(row) for row in apart]]), _seconds(whole))

    def _weights(self, layer: int, width: int) -> list[torch.Tensor]:
        view = self._view
        ffn = {id(x) for x in view.in_projections(layer)}
        found = []
        for module in view.layers[layer].modules():
            if not isinstance(module, nn.Linear):
                continue
            weight = module.weight
            if id(module) in ffn:
                weight = torch.cat([rows[:width] for rows in view.channel_rows(layer, [weight])])
            elif module is view.out_projection(layer):
                weight = weight[:, :width]
            found.append(weight.detach().contiguous())
        return found

    def _product(self, weights: Sequence[Sequence[torch.Tensor]], tokens: int, answers: int) -> Callable[[], None]:
        inputs = {k: torch.randn(tokens, k) for k in {w.shape[1] for layer in weights for w in layer}}
        head = self._view.head.get_parameter("weight")
        answer = torch.randn(answers, head.shape[1])

        @torch.inference_mode()
        def run() -> None:
            for layer in weights:
                for weight in layer:
                    nn.functional.linear(inputs[weight.shape[1]], weight)
            nn.functional.linear(answer, head)

        return run


def evaluation_cost(
    half: Path, wide: Path, conversations: Path, *, num_conversations: int | None = None, rounds: int = 7
) -> dict[str, Any]:
    """Figures of one checkpoint in a half type and its float32 copy, on the first `num_conversations` of a file.

    Returns medians of ratios within rounds: `bf16_over_f32_seconds` and `bf16_layerwise_over_f32_seconds`,
    `evaluation_over_matmul` and `evaluation_over_matmul_nothing_kept`; and what they are of.
    """
    loaded, processor = load_conversations(conversations)[:num_conversations], load_processor(wide)
    anatomy = read_anatomy(wide)
    rng = np.random.default_rng(0)
    ranking = Ranking.from_scores(anatomy, [rng.random(layer.ffn_width) for layer in anatomy.layers])
    batches = make_batches(loaded, processor)
    evaluators = {
        "half": ConfigurationEvaluator(load_for_compute(half), batches, ranking, cache_bytes=2**31),
        "layerwise": ConfigurationEvaluator(
            load_model(half, dtype=torch.bfloat16), batches, ranking, cache_bytes=2**31
        ),
        "wide": ConfigurationEvaluator(load_for_compute(wide), batches, ranking, cache_bytes=2**31),
        "nothing kept": ConfigurationEvaluator(load_for_compute(wide), batches, ranking, cache_bytes=0),
    }
    bare = BareProducts(wide, evaluators["wide"].row_sizes)
    spent: dict[str, list[float]] = {name: [] for name in ("half", "layerwise", "wide", "bare", "nothing kept")}
    for index in range(rounds + 1):
        widths = tuple(int(RETENTION * x.ffn_width) - 8 * (index + layer) for layer, x in enumerate(anatomy.layers))
        order = list(spent)[:: 1 if index % 2 else -1]  # whoever comes first finds other caches
        for name in order:
            seconds = bare.seconds(widths) if name == "bare" else _seconds(partial(evaluators[name].evaluate, widths))
            if index:  # the first round warms up
                spent[name].append(seconds)
    compared = {
        "bf16_over_f32_seconds": ("half", "wide"),
        "bf16_layerwise_over_f32_seconds": ("layerwise", "wide"),
        "evaluation_over_matmul": ("wide", "bare"),
        "evaluation_over_matmul_nothing_kept": ("nothing kept", "bare"),
    }
    ratios = {
        name: [a / b for a, b in zip(spent[over], spent[under], strict=True)]
        for name, (over, under) in compared.items()
    }
    sizes = evaluators["wide"].row_sizes
    return {
        **{name: statistics.median(found) for name, found in ratios.items()},
        "evaluation_seconds": statistics.median(spent["wide"]),
        "bare_products_seconds": statistics.median(spent["bare"]),
        "tokens": sum(tokens for tokens, _ in sizes),
        "padded_tokens": sum(batch.inputs["input_ids"].numel() for batch in batches),
        "answer_tokens": sum(answers for _, answers in sizes),
        "all_ratios": ratios,
    }


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
