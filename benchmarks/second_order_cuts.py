"""The parts `cuts` and `elimination` of `benchmarks.second_order`: KL on validation after uniform cuts.

Of every model and at every FFN sparsity the same number of channels goes from each layer. In the part `cuts`:

- `plain`: by the registered ranking, and that is all;
- `reconstructed`: the down projections are solved anew, as `lop apply --reconstruct` does, from inputs that come
  through the layers as they are cut; `dense_inputs`: the same, from inputs of the dense model.

In the part `elimination`, against `plain`, which it measures if need be:

- `elimination`: channels go in the order of elimination, and that is all; `elimination_reconstructed`: both.

Dampings and elimination see calibration data alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.second_order_figures import Found, mean, ratio, worst
from benchmarks.second_order_models import ELIMINATION, MAGNITUDE, Model
from benchmarks.steps import Steps
from lop.workflows.measuring import streamed
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.reconstruct_checkpoint import solved_sites
from pruning.cutting.reconstruction import SolvedInMemory, reconstruct
from pruning.cutting.surgery import cut_model
from pruning.data.batches import make_batches
from pruning.forward.layer_source import loaded_layers
from pruning.measuring.evaluation import evaluate_model

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row a sparsity: by which ranking channels go, and what is solved (None: nothing) from which inputs."""

    name: str
    ranking: str
    propagates: bool | None = None


PLAIN = Variant("plain", MAGNITUDE)
CUTS = (
    PLAIN,
    Variant("reconstructed", MAGNITUDE, propagates=True),
    Variant("dense_inputs", MAGNITUDE, propagates=False),
)
BY_ELIMINATION = (
    PLAIN,
    Variant("elimination_reconstructed", ELIMINATION, propagates=True),
    Variant("elimination", ELIMINATION),
)
FIGURES = {
    "reconstructed": "reconstruction_kl_ratio",
    "dense_inputs": "dense_inputs_kl_ratio",
    "elimination_reconstructed": "obs_order_kl_ratio",
    "elimination": "elimination_alone_kl_ratio",
}
"""What the ratio of a variant's KL to that of `plain` is called."""


def score(model: Model, sparsity: float, variant: Variant) -> dict[str, Any]:
    """One row."""
    ranking = model.ranking(variant.ranking)
    cut, dense = load_model(model.path), load_model(model.path)
    anatomy = anatomy_of(cut)
    widths = [round(layer.ffn_width * (1 - sparsity)) for layer in anatomy.layers]
    architecture = anatomy.architecture(widths)
    solved = SolvedInMemory()
    if variant.propagates is not None:
        batches = streamed(model.path, model.calibration)
        with loaded_layers(cut.eval()) as source:
            reconstruct(
                source,
                batches,
                anatomy,
                architecture,
                ranking,
                solved,
                num_rows=batches.num_rows,
                propagates=variant.propagates,
            )
    cut_model(cut, architecture, ranking, solved={i: x.tensors for i, x in solved.layers.items()})
    metrics = evaluate_model(cut, make_batches(model.validation, load_processor(model.path)), dense)
    row = {
        "part": "cuts",
        "model": model.name,
        "sparsity": sparsity,
        "variant": variant.name,
        "kl": metrics.kl,
        "agreement": metrics.agreement,
        "answer_tokens": metrics.num_tokens,
    }
    sites = solved_sites(ranking, architecture, solved)
    if sites:
        row |= {
            "calibration_tokens": sites[0].tokens,
            "lost_output": sum(site.loss for site in sites) / len(sites),
            "lost_output_without": sum(site.plain_loss for site in sites) / len(sites),
            # JSON knows no infinity.
            "dampings": [site.damping if math.isfinite(site.damping) else "as cut" for site in sites],
        }
    return row


def cut_rows(
    model: Model, steps: Steps, variants: Sequence[Variant], sparsities: Sequence[float] = SPARSITIES
) -> list[dict[str, Any]]:
    """All rows of a model, variant by variant."""
    rows: list[dict[str, Any]] = []
    for variant in variants:
        model.ranked(variant.ranking, steps)
        for sparsity in sparsities:
            name, key = f"{variant.name} {sparsity}", [*model.key, variant.name, str(sparsity)]
            found = steps.call(name, key, partial(score, model, sparsity, variant))
            rows.append({**found.document, "seconds": found.seconds})
    return rows


def cut_figures(rows: Sequence[dict[str, Any]]) -> Found:
    """Ratios of KL to that of the plain cut, geometric means over sparsities and, as `..._worst`, the greatest; and the
    calibration tokens. Of variants that there are rows of."""
    kl = {(row["model"], row["variant"], row["sparsity"]): row["kl"] for row in rows}
    names = list(dict.fromkeys(row["model"] for row in rows))
    ratios = {
        (name, figure): [
            ratio(own, kl[name, PLAIN.name, sparsity])
            for (of, kind, sparsity), own in kl.items()
            if (of, kind) == (name, variant)
        ]
        for variant, figure in FIGURES.items()
        for name in names
        if any(kind == variant for _, kind, _ in kl)
    }
    found: dict[str, dict[str, float | None]] = {}
    for (name, figure), own in ratios.items():
        found.setdefault(figure, {})[name] = mean(own)
        found.setdefault(f"{figure}_worst", {})[name] = worst(own)
    tokens = {row["model"]: row["calibration_tokens"] for row in rows if "calibration_tokens" in row}
    return found | ({"calibration_tokens": {name: tokens.get(name) for name in names}} if tokens else {})
