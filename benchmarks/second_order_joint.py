"""The part `joint` of `benchmarks.second_order`: units and bits under one budget of bytes, against one after the other.

At 60, 45, 30, 25 and 20% of the bytes that the decoder's sites have (embeddings, head and vision tower stay),
validation KL of four kinds of plans, all by the additive program from one scan on calibration conversations:

- `joint`: units and bits of every site;
- `bits_only`: all units, in the bits that the program chooses, or in equal ones;
- `prune_then_quantise`: units first, then the same bits everywhere: 8 or 4;
- `units_only`.

Which of several plans of a kind is taken, other calibration conversations say, which were not scanned, and joint plans
include those of the other kinds. Units go only where that is sure to help: if the best joint plan is not better than
bits alone by a standard error of the difference between them, over these conversations, then bits alone are the joint
plan (`sure_to_be_better`; the simplest of those that are as good, a rule of Breiman et al., "Classification and
Regression Trees", 1984). Where no plan of a kind is small enough, there is no row of it. Weights are rounded as `lop
apply` rounds them, and scored by the evaluator; what is written of the smallest joint plan is held against that in the
part `reload` (`benchmarks.second_order_written`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.second_order_data import beginnings
from benchmarks.second_order_figures import Found, mean, ratio, worst
from benchmarks.second_order_models import MAGNITUDE, Model
from benchmarks.steps import Steps
from pruning.allocators.additive import additive_architecture
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.dtypes import torch_dtype
from pruning.arrays import FloatArray
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.errors import InfeasibleBudgetError
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.metrics import Metrics
from pruning.measuring.rounded_weights import RoundedWeights
from pruning.planning.axis_spaces import SpaceName, coarse_space
from pruning.planning.limits import Limits
from pruning.planning.prices import decoder_bytes, weight_bytes
from pruning.planning.ranking import Ranking
from pruning.planning.space import Options, Space

SHARES = (0.6, 0.45, 0.3, 0.25, 0.2)
NUM_LEVELS = {"reference": 4, "smollm2": 3}
"""FFN widths and, at most, numbers of KV groups of a site: each is scanned in three kinds of bits."""

NUM_SCANNED = {"reference": 64, "smollm2": 16}
"""Calibration conversations, at most, of each answer as much as validation has: a scan of SmolLM2 has some 500
evaluations."""

NUM_JUDGED = {"reference": 128, "smollm2": 48}
"""Those after them, which choose between plans."""

_CODE = ("benchmarks.second_order_joint",)

JOINT, BITS, THEN, UNITS = "joint", "bits_only", "prune_then_quantise", "units_only"


@dataclass(frozen=True)
class JointModel:
    """A checkpoint `path`, its data, and `stored`: the same weights in the dtype whose bytes count.

    `ranking` is the file that orders its channels and groups.
    """

    name: str
    path: Path
    stored: Path
    ranking: Path
    calibration: Sequence[Conversation]
    validation: Sequence[Conversation]
    folder: Path

    @classmethod
    def of(cls, model: Model) -> Self:
        """The model as the parts `joint` and `reload` take it; its units are ranked already."""
        ranking = model.ranking_path(MAGNITUDE)
        return cls(model.name, model.path, model.stored, ranking, model.calibration, model.validation, model.folder)

    @cached_property
    def anatomy(self) -> ModelAnatomy:
        return read_anatomy(self.stored)

    @cached_property
    def order(self) -> Ranking:
        return Ranking.from_bytes(self.ranking.read_bytes())

    @cached_property
    def space(self) -> Space:
        return coarse_space(self.anatomy, SpaceName.ALL_BITS, num_levels=NUM_LEVELS[self.name], round_to=8)

    @cached_property
    def scanned(self) -> Sequence[Conversation]:
        return beginnings(self.calibration[: NUM_SCANNED[self.name]])

    @cached_property
    def judged(self) -> Sequence[Conversation]:
        first = len(self.scanned)
        found = self.calibration[first : first + NUM_JUDGED[self.name]]
        return beginnings(found) or self.scanned  # of a trial there may be none left

    @cached_property
    def on_scanned(self) -> ConfigurationEvaluator:
        return self._evaluator(self.scanned, self._rounded())

    @cached_property
    def on_judged(self) -> ConfigurationEvaluator:
        """Each conversation is a fold of its own."""
        return self._evaluator(self.judged, self.rounded_plans, range(len(self.judged)))

    @cached_property
    def on_validation(self) -> ConfigurationEvaluator:
        return self._evaluator(self.validation, self.rounded_plans)

    @cached_property
    def rounded_plans(self) -> RoundedWeights:
        """Of plans, which have many weights in common. A scan meets each once, and would leave no room for them."""
        return self._rounded()

    def _rounded(self) -> RoundedWeights:
        return RoundedWeights(torch_dtype(self.anatomy.dtype))

    def _evaluator(
        self, conversations: Sequence[Conversation], rounder: RoundedWeights, folds: Sequence[int] | None = None
    ) -> ConfigurationEvaluator:
        batches = make_batches(conversations, load_processor(self.path))
        return ConfigurationEvaluator(load_model(self.path), batches, self.order, folds=folds, rounder=rounder)

    def scan(self, n: int) -> dict[str, Any]:
        """KL of every option of decision `n`, all others dense."""
        top = self.space.top
        choices = [(*top[:n], k, *top[n + 1 :]) for k in range(top[n])]
        found = self.on_scanned([self.space.architecture(choice) for choice in choices])
        return {"kl": [metrics.kl for metrics in found] + [0.0]}

    def limits(self, space: Space, share: float) -> Limits:
        """At most `share` of the bytes of the sites."""
        decoder, files = decoder_bytes(self.anatomy), weight_bytes(self.anatomy)
        sites = sum(decoder.of_dense[site] for site in self.space.dense)
        return Limits(space, (files.limit(space, files.total - sites + math.floor(share * sites)),))

    def candidates(self, share: float, loss: FloatArray) -> dict[str, list[Architecture]]:
        """The plans of each kind."""
        found: dict[str, list[Architecture]] = {JOINT: [], BITS: [], THEN: [], UNITS: []}
        whole = [x.options[0].units == x.options[0].units.max() for x in self.space.decisions]
        everything = [np.ones_like(x) for x in whole]
        same = {bits: [_in(bits, x.options[0]) for x in self.space.decisions] for bits in (None, 8, 4)}
        for kind, of in ((JOINT, everything), (BITS, whole), (THEN, same[8]), (THEN, same[4]), (UNITS, same[None])):
            space, losses = _among(self.space, loss, of)
            try:
                limits = self.limits(space, share)
            except InfeasibleBudgetError:
                continue
            found[kind].append(additive_architecture(space, losses, limits))
            if kind == BITS:
                found[kind].append(space.architecture(uniform_choice(limits)))
        return found

    def rows(self, share: float, loss: FloatArray) -> dict[str, Any]:
        """One row a kind of plans."""
        candidates = self.candidates(share, loss)
        candidates[JOINT] = [x for kind in candidates.values() for x in kind]
        every = list(dict.fromkeys(candidates[JOINT]))
        judged = dict(zip(every, self.on_judged(every), strict=True))
        best = {kind: min(own, key=lambda x: judged[x].kl) for kind, own in candidates.items() if own}
        if BITS in best and not sure_to_be_better(judged[best[JOINT]], judged[best[BITS]]):
            best[JOINT] = best[BITS]
        rows = []
        for kind, architecture in best.items():
            (metrics,) = self.on_validation([architecture])
            rows.append(
                {
                    "part": "joint",
                    "model": self.name,
                    "share": share,
                    "kind": kind,
                    "same_as": sorted(x for x, own in best.items() if own == architecture and x != kind),
                    "kl": metrics.kl,
                    "agreement": metrics.agreement,
                    "calibration_kl": judged[architecture].kl,
                    "decoder_bytes": decoder_bytes(self.anatomy).cost(architecture),
                    "architecture": architecture.document(),
                }
            )
        return {"rows": rows}


def sure_to_be_better(one: Metrics, other: Metrics) -> bool:
    """Whether the KL of `one` is less by more than a standard error of the difference, over folds."""
    pairs = list(zip(one.folds or (), other.folds or (), strict=True))
    differences = np.array([(x.kl - y.kl) * x.num_tokens for x, y in pairs])
    error = math.sqrt(len(pairs)) * float(differences.std(ddof=1)) if len(pairs) > 1 else math.inf
    return float(differences.sum()) < -error


def _in(bits: int | None, options: Options) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """[K] which options are in those bits, or nothing at all; all, where a site is never in those."""
    own = np.array([x.bits == bits for x in options])
    wanted = own | (options.units == 0)
    return wanted if (own & (options.units > 0)).any() else np.ones_like(wanted)


def _among(
    space: Space, loss: FloatArray, of: Iterable["np.ndarray[Any, np.dtype[np.bool_]]"]
) -> tuple[Space, FloatArray]:
    """The space of the options `of` [N][K] alone, and their losses."""
    kept = [np.flatnonzero(own) for own in of]
    decisions = tuple(x.take(k) for x, k in zip(space.decisions, kept, strict=True))
    losses = np.zeros((len(kept), max(len(k) for k in kept)))
    for row, k, own in zip(losses, kept, loss, strict=True):
        row[: len(k)] = own[k]
    return replace(space, decisions=decisions), losses


def joint_rows(
    model: JointModel, key: Sequence[str], steps: Steps, shares: Sequence[float] = SHARES
) -> list[dict[str, Any]]:
    """All rows of a model; `key` is what every figure depends on."""
    own = _key(model, key)
    loss = np.zeros((model.space.num_decisions, int(model.space.counts.max())))
    for n, row in enumerate(loss):
        found = steps.call(f"joint scan {n}", own, partial(model.scan, n), modules=_CODE).document["kl"]
        row[: len(found)] = found
    rows: list[dict[str, Any]] = []
    for share in shares:
        step = steps.call(f"joint {share}", [*own, str(share)], partial(model.rows, share, loss), modules=_CODE)
        rows += [{**row, "seconds": step.seconds} for row in step.document["rows"]]
    return rows


def kept_smallest(model: JointModel, key: Sequence[str], steps: Steps, share: float) -> list[dict[str, Any]] | None:
    """The document of the joint plan that `joint_rows` has found at `share`; None if it was not run."""
    step = steps.kept(f"joint {share}", [*_key(model, key), str(share)])
    rows = [] if step is None else [row for row in step.document["rows"] if row["kind"] == JOINT]
    return rows[0]["architecture"] if rows else None


def _key(model: JointModel, key: Sequence[str]) -> list[str]:
    numbers = NUM_LEVELS[model.name], len(model.scanned), len(model.judged)
    return [*key, "joint", *map(str, numbers), model.anatomy.dtype]


def joint_figures(rows: Sequence[dict[str, Any]]) -> Found:
    """Ratios of validation KL, geometric means over the shares at which both kinds have a plan, how many these are, and
    against bits alone the greatest."""
    kl = {(x["model"], x["kind"], x["share"]): x["kl"] for x in rows}
    names = list(dict.fromkeys(row["model"] for row in rows))

    def against(kind: str) -> dict[str, list[float]]:
        return {
            name: [
                ratio(kl[name, JOINT, share], other)
                for (of, own, share), other in kl.items()
                if (of, own) == (name, kind)
            ]
            for name in names
        }

    found: dict[str, dict[str, float | None]] = {}
    for kind in (BITS, THEN, UNITS):
        ratios = against(kind)
        found[f"joint_vs_{kind}"] = {name: mean(own) for name, own in ratios.items()}
        if kind != UNITS:
            found[f"joint_shares_vs_{kind}"] = {name: len(own) for name, own in ratios.items()}
        if kind == BITS:
            found[f"joint_vs_{kind}_worst"] = {name: worst(own) for name, own in ratios.items()}
    return found
