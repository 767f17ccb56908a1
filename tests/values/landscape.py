"""A made-up model whose KL is a formula: layers of different sensitivity, and cuts that make each other worse.

None of its interactions is a term of `values.basis`: what is lost grows with every cut layer it passes later on, two
neighbours are as bad as the wider one of them, and the sum saturates.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer
from pruning.measuring.metrics import Metrics
from pruning.planning.prices import ffn_parameters
from pruning.planning.space import Choice, Space
from storage.records import Sample


def anatomy_of(
    widths: Sequence[int], per_channel: Sequence[int] | None = None, fingerprint: str = "f" * 64
) -> ModelAnatomy:
    """Layers of `widths` [L], each channel of layer l worth `per_channel` [L] parameters (default 12)."""
    layers = tuple(
        DecoderLayer(
            index=i,
            ffn_width=w,
            num_heads=4,
            num_kv_groups=2,
            head_dim=4,
            ffn_parameters_per_channel=per_channel[i] if per_channel else 12,
            parameters=w * 12 + 100,
        )
        for i, w in enumerate(widths)
    )
    return ModelAnatomy(
        model_type="llava",
        text_model_type="llama",
        hidden_size=4,
        vocab_size=32,
        layers=layers,
        total_parameters=sum(x.parameters for x in layers) + 1000,
        dtype="F32",
        fingerprint=fingerprint,
    )


MOST_KL = 3.0
"""Nats of a model that says nothing any more."""


def true_kl(anatomy: ModelAnatomy, widths: Sequence[int]) -> float:
    """KL in nats of FFN widths [L]: the formula."""
    p = [1.0 - w / x.ffn_width for w, x in zip(widths, anatomy.layers, strict=True)]
    lost = 0.0
    for i, (q, following) in enumerate(zip(p, [*p[1:], 0.0], strict=True)):
        lost = lost * (1.0 + 0.6 * q) + 0.01 * math.exp(2.0 * math.sin(2.4 * i)) * q**1.7
        lost += 0.02 * min(q, following) ** 3
    return MOST_KL * (1.0 - math.exp(-lost / MOST_KL))


def sample(anatomy: ModelAnatomy, widths: Sequence[int], kl: float | None = None) -> Sample:
    value = true_kl(anatomy, widths) if kl is None else kl
    metrics = Metrics(kl=value, nll=1.0 + value, accuracy=0.5, num_tokens=100, num_answers=50)
    return Sample("m", "r" * 64, "c" * 64, anatomy.architecture(widths), metrics, 0.1, "test")


def with_shares(samples: Sequence[Sample], *, accuracy: float) -> list[Sample]:
    """`samples` with an agreement that falls with their KL, and an exact match that falls from `accuracy`."""
    return [
        replace(s, metrics=replace(s.metrics, accuracy=accuracy * share**3, agreement=share))
        for s in samples
        for share in [math.exp(-2.0 * s.metrics.kl)]
    ]


def samples_of(
    anatomy: ModelAnatomy, space: Space, *, targets: Sequence[float] = (0.3, 0.45, 0.6), evaluations: int = 30
) -> list[Sample]:
    """One-layer scans, and for each target sparsity the choices that a small random search looks at."""
    costs = [row.tolist() for row in space.tables(ffn_parameters(anatomy).of)]
    dense = space.units_of(space.top)
    seen: dict[tuple[int, ...], float] = {}
    for layer, row in enumerate(space.units):
        for width in row[:-1].tolist():
            widths = (*dense[:layer], width, *dense[layer + 1 :])
            seen[widths] = true_kl(anatomy, widths)
    rng = random.Random(0)
    for target in targets:
        budget = int((1.0 - target) * anatomy.ffn_parameters)
        found: dict[Choice, float] = {}
        for _ in range(20 * evaluations):  # a small space may not hold so many
            if len(found) == evaluations:
                break
            start: Choice = min(found, key=lambda c: found[c]) if found else space.top
            choice = list(start)
            for _ in range(2):
                option = rng.randrange(int(space.counts[0]))
                choice[rng.randrange(len(choice))] = option
            while _cost(costs, choice) > budget:
                layer = rng.randrange(len(choice))
                choice[layer] = max(0, choice[layer] - 1)
            for layer in rng.sample(range(len(choice)), len(choice)):
                row_costs = costs[layer]
                while choice[layer] + 1 < len(row_costs):
                    step = row_costs[choice[layer] + 1] - row_costs[choice[layer]]
                    if _cost(costs, choice) + step > budget:
                        break
                    choice[layer] += 1
            found[tuple(choice)] = true_kl(anatomy, space.units_of(choice))
        for chosen, kl in found.items():
            seen[space.units_of(chosen)] = kl
    return [sample(anatomy, widths, kl) for widths, kl in seen.items()]


def _cost(costs: Sequence[Sequence[int]], choice: Sequence[int]) -> int:
    return sum(row[k] for row, k in zip(costs, choice, strict=True))
