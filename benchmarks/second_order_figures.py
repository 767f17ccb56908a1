"""The summary of `benchmarks.second_order`: one number a figure, that of the worse model, and what has to hold of it.

Where models have bars of their own, the worse model is the one that is further towards its bar, or past it; its figures
stand beside those of the others under its name. Ratios are of validation KL and better below 1.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Found = Mapping[str, Mapping[str, float | None]]
"""By figure, then by model; None: there is nothing to make it of."""

LEAST_KL = 1e-9
"""Smaller KL, nats a token, is rounding."""

LEAST_COUNTED = 1e-3
"""Where both KL of a ratio are smaller, both models are nearly the dense one, and means of ratios leave it out; those
named `..._all` leave out none."""

MOST: Mapping[str, float | Mapping[str, float]] = {
    "reconstruction_kl_ratio": {"reference": 0.90, "smollm2": 0.85},
    "reconstruction_kl_ratio_worst": 1.0,
    "obs_order_kl_ratio": {"reference": 0.85, "smollm2": 0.75},
    "ecoflap": 1.0,
    "ecoflap_wanda_vs_uniform": 1.0,
    "ecoflap_sparsegpt_vs_uniform": 1.0,
    "sparsegpt_vs_wanda": 1.0,
    "sparsegpt_vs_wanda_2_4": 1.0,
    "searched_vs_ecoflap": 1.0,
    "joint_vs_bits_only": 1.0,
    "joint_vs_bits_only_worst": 1.0,
    "joint_vs_prune_then_quantise": 0.8,
    "reload_logit_difference": 1e-4,
    "reload_kl_difference": 1e-3,
    "reconstruct_peak_rss_gb": 2.0,
}
"""What figures are to be at most, of every model or by its name."""

LEAST: Mapping[str, float] = {
    "calibration_tokens": 30_000,
    "llama_agreement_8_bits": 0.98,
    "llama_agreement_4_bits": 0.90,
    "llama_agreement_joint": 0.90,
    "llama_positions": 2_000,
}
"""What figures are to be at least."""

FEWEST = ("joint_shares_vs_bits_only", "joint_shares_vs_prune_then_quantise", "joint_shares_vs_units_only")
"""Counts, of which the worse model has fewer."""

ECOFLAP = (
    "ecoflap_wanda_vs_uniform",
    "ecoflap_sparsegpt_vs_uniform",
    "sparsegpt_vs_wanda",
    "sparsegpt_vs_wanda_2_4",
    "searched_vs_ecoflap",
)
"""What `ecoflap` is the worst of."""


def summary_of(found: Found) -> dict[str, Any]:
    """Each figure of the worse model, None if one of the models has none; `holds` by figure and bar, with a None
    that does not hold; and each model's own figures under its name."""
    worse = {name: _worst(name, of) for name, of in found.items()}
    if all(name in worse for name in ECOFLAP):
        worse["ecoflap"] = _greatest(worse[name] for name in ECOFLAP)
    models = dict.fromkeys(model for of in found.values() for model in of)
    by_model = {model: {name: of[model] for name, of in found.items() if model in of} for model in models}
    return {
        **worse,
        "holds": {k: v for name in worse for k, v in _holds(name, worse[name], found.get(name))},
        **by_model,
    }


def mean(ratios: Sequence[float]) -> float | None:
    """Geometric; None of nothing."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def worst(ratios: Sequence[float]) -> float | None:
    """The greatest; None of nothing."""
    return max(ratios, default=None)


def ratio(kl: float, other: float) -> float:
    """Of two KL."""
    return max(kl, LEAST_KL) / max(other, LEAST_KL)


def _bar(name: str, model: str) -> float:
    bar = MOST.get(name, LEAST.get(name, 1.0))
    return bar if isinstance(bar, float | int) else bar[model]


def _worst(name: str, of: Mapping[str, float | None]) -> float | None:
    known = {model: value for model, value in of.items() if value is not None}
    if not known or len(known) < len(of):
        return None
    choose = min if name in LEAST or name in FEWEST else max
    return known[choose(known, key=lambda model: known[model] / _bar(name, model))]


def _greatest(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else max(x for x in known if x is not None)


def _holds(name: str, worse: float | None, of: Mapping[str, float | None] | None) -> Iterable[tuple[str, bool]]:
    if name in LEAST:
        yield f"{name}_at_least_{LEAST[name]:g}", worse is not None and worse >= LEAST[name]
    bars = MOST.get(name)
    if isinstance(bars, Mapping):
        for model, value in (of or {}).items():
            yield f"{name}_at_most_{bars[model]:g}_on_{model}", value is not None and value <= bars[model]
    elif bars is not None:
        yield f"{name}_at_most_{bars:g}", worse is not None and worse <= bars
