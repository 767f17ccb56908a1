"""The parts `cuts` and `elimination` of `benchmarks.second_order`: KL on validation after uniform cuts.

Of every model and at every FFN sparsity the same number of channels goes from each layer. In the part `cuts`:

- `plain`: by the registered ranking, and that is all;
- `reconstructed`: the down projections are solved anew, as `lop apply --reconstruct` does, from inputs that come
  through the layers as they are cut.

In the part `elimination`, against `plain`, which it measures if need be:

- `elimination_reconstructed`: channels go in the order of elimination, and the others are solved as above;
- `elimination`: the order alone;
- `dense_inputs`: by the registered ranking, solved from inputs of the dense model and scored by the evaluator, as
  searches score it. H of these inputs is what elimination is measured from.

Dampings and elimination see calibration data alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.second_order_data import by_length
from benchmarks.second_order_figures import Found, mean, ratio, worst
from benchmarks.second_order_models import ELIMINATION, MAGNITUDE, Model
from benchmarks.steps import Steps
from lop.workflows.measuring import streamed
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.dtypes import torch_dtype
from pruning.checkpoints.loading import load_model, load_processor
from pruning.cutting.reconstruct_checkpoint import solved_sites
from pruning.cutting.reconstruction import SolvedInMemory, reconstruct
from pruning.cutting.surgery import cut_model
from pruning.data.batches import make_batches
from pruning.forward.layer_source import loaded_layers
from pruning.measuring.evaluation import ConfigurationEvaluator, evaluate_model
from pruning.measuring.metrics import Metrics
from pruning.measuring.solved_outputs import SolvedOutputs
from pruning.planning.ranking import Ranking

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row a sparsity: by which ranking channels go, and whether down projections are solved anew, as they are
    written or as they are searched."""

    name: str
    ranking: str
    solved: bool = False
    searched: bool = False


PLAIN = Variant("plain", MAGNITUDE)
CUTS = (PLAIN, Variant("reconstructed", MAGNITUDE, solved=True))
DENSE_INPUTS = Variant("dense_inputs", MAGNITUDE, searched=True)
BY_ELIMINATION = (
    PLAIN,
    Variant("elimination_reconstructed", ELIMINATION, solved=True),
    Variant("elimination", ELIMINATION),
    DENSE_INPUTS,
)
FIGURES = {
    "reconstructed": "reconstruction_kl_ratio",
    "dense_inputs": "dense_inputs_kl_ratio",
    "elimination_reconstructed": "obs_order_kl_ratio",
    "elimination": "elimination_alone_kl_ratio",
}
"""What the ratio of a variant's KL to that of `plain` is called."""


_CODE = ("benchmarks.second_order_cuts",)


def score(model: Model, sparsity: float, variant: Variant) -> dict[str, Any]:
    """One row."""
    ranking, anatomy = model.ranking(variant.ranking), model.anatomy
    architecture = anatomy.architecture([round(layer.ffn_width * (1 - sparsity)) for layer in anatomy.layers])
    found: dict[str, Any] = {}
    if variant.searched:
        metrics = _as_searched(model, architecture, ranking)
    else:
        metrics, found = _as_written(model, architecture, ranking, solves=variant.solved)
    return {
        "part": "cuts",
        "model": model.name,
        "sparsity": sparsity,
        "variant": variant.name,
        "kl": metrics.kl,
        "agreement": metrics.agreement,
        "answer_tokens": metrics.num_tokens,
        **found,
    }


def _as_searched(model: Model, architecture: Architecture, ranking: Ranking) -> Metrics:
    batches = make_batches(by_length(model.validation), load_processor(model.path))
    solver = SolvedOutputs(model.products(), torch_dtype(model.anatomy.dtype))
    (metrics,) = ConfigurationEvaluator(load_model(model.path), batches, ranking, solver=solver)([architecture])
    return metrics


def _as_written(
    model: Model, architecture: Architecture, ranking: Ranking, *, solves: bool
) -> tuple[Metrics, dict[str, Any]]:
    """Metrics, and how projections were solved, if they were."""
    cut, dense = load_model(model.path), load_model(model.path)
    solved = SolvedInMemory()
    if solves:
        batches = streamed(model.path, model.passed)
        with loaded_layers(cut.eval()) as source:
            reconstruct(source, batches, model.anatomy, architecture, ranking, solved, num_rows=batches.num_rows)
    cut_model(cut, architecture, ranking, solved={i: x.tensors for i, x in solved.layers.items()})
    validation = make_batches(by_length(model.validation), load_processor(model.path))
    metrics = evaluate_model(cut, validation, dense)
    sites = solved_sites(ranking, architecture, solved)
    if not sites:
        return metrics, {}
    return metrics, {
        "calibration_tokens": sites[0].tokens,
        "lost_output": sum(site.loss for site in sites) / len(sites),
        "lost_output_without": sum(site.plain_loss for site in sites) / len(sites),
        # JSON knows no infinity.
        "dampings": [site.damping if math.isfinite(site.damping) else "as cut" for site in sites],
    }


def cut_rows(
    model: Model, steps: Steps, variants: Sequence[Variant], sparsities: Sequence[float] = SPARSITIES
) -> list[dict[str, Any]]:
    """All rows of a model, variant by variant."""
    rows: list[dict[str, Any]] = []
    for variant in variants:
        model.ranked(variant.ranking, steps)
        for sparsity in sparsities:
            name, key = f"{variant.name} {sparsity}", [*model.key, variant.name, str(sparsity)]
            found = steps.call(name, key, partial(score, model, sparsity, variant), modules=_CODE)
            rows.append({**found.document, "seconds": found.seconds})
    if DENSE_INPUTS in variants:
        model.forget_products()
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
