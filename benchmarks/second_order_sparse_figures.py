"""What rows of weights set to zero say of each other: ratios of validation KL of two rows that differ in one thing.

Both rows of a pair are scored on the same conversations, so how sure a ratio is, conversations tell that are drawn
again, the same ones for both (`pruning.measuring.bootstrap`). An interval on both sides of 1 is a tie. Bars are held
against the ratios themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.second_order_densities import SEARCHED
from benchmarks.second_order_figures import Found, mean, ratio, worst
from lop.workflows.sparsifying import Ratios
from pruning.arrays import IntArray
from pruning.cutting.rewriting.sparsifier import LocalStep
from pruning.cutting.rewriting.sparsify_checkpoint import Modules
from pruning.measuring.bootstrap import percentiles, resampled

LEVEL = 0.9

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two rows, the first of which is to have the smaller KL; `figure` is what their ratio is one of."""

    figure: str
    row: Row
    other: Row

    @property
    def ratio(self) -> float:
        """Of KL."""
        return ratio(self.row["kl"], self.other["kl"])

    @property
    def interval(self) -> tuple[float, float]:
        """90% of `ratio`."""
        own, other = (np.array(x["conversation_nats"]) for x in (self.row, self.other))

        def drawn(conversations: IntArray) -> float:
            return ratio(float(own[conversations].sum()), float(other[conversations].sum()))

        return percentiles(resampled(drawn, len(own)), LEVEL)


def ecoflap_figures(rows: Sequence[Row]) -> Found:
    """Of each figure the greatest ratio of its rows and, as `..._mean`, their geometric mean.

    ECoFLaP's ratios are against uniform ones with the same local step, SparseGPT is against Wanda with the same ratios.
    """
    by_step = [f"ecoflap_{step}_vs_uniform" for step in LocalStep]
    found = _figures(rows, _ecoflap_pairs(rows), [*by_step, "sparsegpt_vs_wanda", "sparsegpt_vs_wanda_2_4"])
    return {name: own for name, own in found.items() if name != "sparsegpt_vs_wanda_2_4_mean"}  # is of one row


def searched_figures(rows: Sequence[Row]) -> Found:
    """Searched ratios against ECoFLaP's, both on the decoder alone: by Wanda, which they were searched by, and by
    SparseGPT, which `lop sparsify` takes unless it is told otherwise."""
    return _figures(rows, _searched_pairs(rows), ["searched_vs_ecoflap", "searched_sparsegpt_vs_ecoflap"])


def with_intervals(ecoflap: Sequence[Row], densities: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of both parts with what each is `against`: by figure its ratio, and that ratio's 90% interval."""
    against: dict[int, Row] = {}
    for pair in (*_ecoflap_pairs(ecoflap), *_searched_pairs([*ecoflap, *densities])):
        own = {"ratio": pair.ratio, "interval": list(pair.interval)}
        against.setdefault(id(pair.row), {})[pair.figure] = own
    found = [[{**row, "against": against.get(id(row), {})} for row in rows] for rows in (ecoflap, densities)]
    return found[0], found[1]


def interval_table(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By model, figure and sparsity or pattern (of `sparsegpt_vs_wanda` with its ratios): ratio, low and high end."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        for figure, own in row.get("against", {}).items():
            at = f"{row['ratios']} {_at(row)}" if figure == "sparsegpt_vs_wanda" else _at(row)
            found.setdefault(row["model"], {}).setdefault(figure, {})[at] = [own["ratio"], *own["interval"]]
    return found


def _figures(rows: Sequence[Row], pairs: Iterator[Pair], figures: Sequence[str]) -> Found:
    """A model without a figure's rows has it as None, if any of `rows` is of the model."""
    models = dict.fromkeys(row["model"] for row in rows)
    ratios: dict[str, dict[str, list[float]]] = {name: {model: [] for model in models} for name in figures}
    for pair in pairs:
        ratios[pair.figure][pair.row["model"]].append(pair.ratio)
    found: dict[str, dict[str, float | None]] = {}
    for name, of in ratios.items():
        found[name] = {model: worst(own) for model, own in of.items()}
        found[f"{name}_mean"] = {model: mean(own) for model, own in of.items()}
    return found


def _ecoflap_pairs(rows: Sequence[Row]) -> Iterator[Pair]:
    known = {_key(row): row for row in rows}
    for row in rows:
        if row["ratios"] == Ratios.ECOFLAP and (other := known.get(_key({**row, "ratios": Ratios.UNIFORM.value}))):
            yield Pair(f"ecoflap_{row['step']}_vs_uniform", row, other)
        if row["step"] == LocalStep.SPARSEGPT and (other := known.get(_key({**row, "step": LocalStep.WANDA.value}))):
            yield Pair("sparsegpt_vs_wanda_2_4" if row["pattern"] else "sparsegpt_vs_wanda", row, other)


def _searched_pairs(rows: Sequence[Row]) -> Iterator[Pair]:
    known = {_key(row): row for row in rows if row["modules"] == Modules.LANGUAGE}
    for row in known.values():
        other = known.get(_key({**row, "ratios": Ratios.ECOFLAP.value}))
        if row["ratios"] == SEARCHED and other is not None:
            by_wanda = row["step"] == LocalStep.WANDA
            yield Pair("searched_vs_ecoflap" if by_wanda else "searched_sparsegpt_vs_ecoflap", row, other)


def _key(row: Row) -> tuple[str, ...]:
    return row["model"], row["step"], row["ratios"], _at(row), row["modules"]


def _at(row: Row) -> str:
    return str(row["pattern"] or row["sparsity"])
