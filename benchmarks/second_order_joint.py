"""The part `joint` of `benchmarks.second_order`: units and bits under one budget of bytes, against one after the other.

At 60, 45, 30, 25 and 20% of the bytes that the decoder's sites have (embeddings, head and vision tower stay),
validation KL of what users get: `lop search` at that target, then `lop plan` for as many bytes, both as they are.
Everything is chosen on the same calibration conversations, from one database; weights are rounded as `lop apply`
rounds them. Rows of a share, where plans of their kind are small enough:

- `joint`: the plan of `--space all,bits`, after searches of that and of bits alone, as both are stored;
- `joint_alone`: the best of the search of `all,bits` by itself, half of whose evaluations are of bits alone;
- `joint_additive`: `--method additive-dp`, which sums up what the scan measured one by one;
- `bits_only`: the plan of `--space bits`, whose search begins with equal bits;
- `prune_then_quantise`: fewer units, then the same bits everywhere, 8 or 4; the search of `all,bits` held to these;
- `units_only`: the same, held to bits as they are.

Each search has as many evaluations, N: those of `prune_then_quantise` are halved between 8 and 4 bits, and that of bits
alone has more at each share by what its scan has less than that of `all,bits`, which the others share. `joint` is
planned from two such searches, so from twice N and what bits alone have more, and filled up as `lop plan` fills up;
`prune_then_quantise` and `units_only` are what their one search found, as it is. Like is compared with like where
`joint_alone`, N evaluations as it is, is held against them. What is written of the smallest joint plan is held against
what was scored in the part `reload` (`benchmarks.second_order_written`).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from benchmarks.measured_code import AT_START
from benchmarks.second_order_data import beginnings
from benchmarks.second_order_figures import LEAST_COUNTED, Found, mean, ratio, worst
from benchmarks.second_order_models import Model
from benchmarks.steps import Steps
from engines.memo import MemoisedEvaluator
from lop.workflows.engines import LOCAL_ENGINE, EvaluatorRecipe, open_engine
from lop.workflows.measuring import record_calibration
from lop.workflows.registration import register_model
from lop.workflows.searching import search_model
from mcts.result import TargetResult
from mcts.search import SharedKnowledge, TargetSearch
from mcts.sensitivity import SENSITIVITY_SOURCE, scan_choices, scan_sensitivity
from mcts.settings import SearchSettings
from pruning.allocators.additive import interpolated_losses
from pruning.allocators.evolution import Score
from pruning.allocators.methods import Method
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.dtypes import torch_dtype
from pruning.anatomy.packed_weights import FEWER_BITS
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model, load_processor
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation
from pruning.errors import InfeasibleBudgetError, InfeasibleTargetError
from pruning.measuring.evaluation import ConfigurationEvaluator
from pruning.measuring.rounded_weights import RoundedWeights
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.bit_spaces import in_same_bits
from pruning.planning.budget import header_bytes_bound
from pruning.planning.prices import decoder_bytes, weight_bytes
from pruning.planning.ranking import Ranking
from pruning.planning.scope import Scope
from pruning.planning.space import Space
from pruning.planning.workload import Budget
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.records import ModelRecord
from storage.sql_repository import open_repository
from values.surrogate import retentions

SHARES = (0.6, 0.45, 0.3, 0.25, 0.2)
NUM_LEVELS = {"reference": 4, "smollm2": 3}
"""FFN widths and, at most, numbers of KV groups of a site: each is scanned in three kinds of bits."""

NUM_SCORED = {"reference": 64, "smollm2": 16}
"""Calibration conversations, at most, of each answer as much as validation has: a scan of SmolLM2 has some 500
evaluations."""

EVALUATIONS = {"reference": 48, "smollm2": 24}
"""Of each kind of plans at each share; scans come on top."""

SEED = 0

_SEARCH = ("lop.workflows.searching",)
_CODE = ("benchmarks.second_order_joint",)

JOINT, ALONE, ADDITIVE = "joint", "joint_alone", "joint_additive"
BITS, THEN, UNITS = "bits_only", "prune_then_quantise", "units_only"


@dataclass(frozen=True)
class JointModel:
    """A checkpoint `path`, its data, and `stored`: the same weights in the dtype whose bytes count."""

    name: str
    path: Path
    stored: Path
    calibration: Sequence[Conversation]
    validation: Sequence[Conversation]
    folder: Path

    @classmethod
    def of(cls, model: Model) -> Self:
        """The model as the parts `joint` and `reload` take it."""
        return cls(model.name, model.path, model.stored, model.calibration, model.validation, model.folder)

    @cached_property
    def anatomy(self) -> ModelAnatomy:
        return read_anatomy(self.stored)

    @cached_property
    def repository(self) -> Repository:
        """With the model, ranked on all calibration conversations. What a killed run has scored is there."""
        # Samples of other code would be taken for its own.
        code = AT_START.digests(AT_START.reached(_SEARCH))
        name = f"joint-{sha256(json.dumps(code).encode()).hexdigest()[:16]}.db"
        repository = open_repository(f"sqlite:///{self.folder / name}", create=True)
        register_model(repository, self.name, self.stored, self.calibration)
        return repository

    @property
    def record(self) -> ModelRecord:
        return self.repository.get_model(self.name)

    @cached_property
    def order(self) -> Ranking:
        return Ranking.from_bytes(self._ranking)

    @property
    def _ranking(self) -> bytes:
        return self.repository.get_artifact(self.record.ranking_sha256).content

    @cached_property
    def space(self) -> Space:
        return self.settings(SpaceName.ALL_BITS, 1.0, 1).space(self.anatomy)

    @cached_property
    def scored(self) -> list[Conversation]:
        return beginnings(self.calibration[: NUM_SCORED[self.name]])

    @cached_property
    def on_validation(self) -> ConfigurationEvaluator:
        batches = make_batches(self.validation, load_processor(self.path))
        return ConfigurationEvaluator(
            load_model(self.path), batches, self.order, rounder=RoundedWeights(torch_dtype(self.anatomy.dtype))
        )

    @cached_property
    def more_of_bits(self) -> int:
        """Evaluations that a search of bits alone has more at each share, for the smaller scan."""
        bits = self.settings(SpaceName.BITS, 1.0, 1).space(self.anatomy)
        return (len(scan_choices(self.space)) - len(scan_choices(bits))) // len(SHARES)

    def settings(self, space: SpaceName, share: float, evaluations: int) -> SearchSettings:
        """Of the search at `share` of the bytes of the sites."""
        return SearchSettings(
            budgets=(self._decoder_bytes(share),),
            scope=Scope.DECODER,
            axes=space,
            num_evaluations=evaluations,
            num_levels=NUM_LEVELS[self.name],
            seed=SEED,
        )

    def search(self, space: SpaceName, share: float, evaluations: int) -> TargetResult | None:
        """What `lop search` finds; None if nothing of the space is that small."""
        settings = self.settings(space, share, evaluations)
        try:
            return search_model(self.repository, self.name, self.scored, settings, name="calibration").targets[0]
        except InfeasibleTargetError:
            return None

    def plan(self, space: SpaceName, share: float, method: Method | None = None) -> Architecture:
        """What `lop plan` answers for files of as many bytes as the search's target leaves them; by default as the
        searches found it.

        Raises InfeasibleBudgetError if nothing of the space is that small.
        """
        files = weight_bytes(self.anatomy, header_bytes=header_bytes_bound(self.anatomy, packs=True))
        most = files.total - decoder_bytes(self.anatomy).total + self._decoder_bytes(share)
        request = PlanRequest(model=self.name, space=space, method=method, budget=Budget(disk_bytes=most))
        plan = Planner(self.repository, PredictorCache(self.repository, capacity=1)).plan(request)
        if plan.method != (method or Method.MCTS):
            raise RuntimeError(f"a plan of {space} at {share} is to be the search's, not of {plan.method}")
        return plan.architecture(self.anatomy)

    def held_to(self, bits: int | None, share: float, evaluations: int) -> TargetResult | None:
        """What the search of `all,bits` finds among options in the same bits everywhere, its `choice` one of `space`;
        None if none is that small."""
        settings = self.settings(SpaceName.ALL_BITS, share, evaluations)
        (target,) = settings.resolve_targets(self.anatomy)
        kept = in_same_bits(self.space, bits)
        try:
            limits = settings.limits(self.anatomy, target).among(kept)
        except InfeasibleBudgetError:
            return None
        recipe = EvaluatorRecipe.of(self.record, self._ranking, self.scored, has_bits=True)
        calibration = record_calibration(self.repository, self.scored, "calibration")
        with open_engine(recipe, LOCAL_ENGINE) as evaluate:

            def score(source: str, space: Space) -> Score:
                key = (self.name, self.record.ranking_sha256, calibration.id)
                memo = MemoisedEvaluator(self.repository, *key, evaluate, source)
                return lambda choices: memo([space.architecture(choice) for choice in choices])

            sensitivity = scan_sensitivity(self.space, score(SENSITIVITY_SOURCE, self.space))
            losses = interpolated_losses(self.space, sensitivity, limits.space)
            shared = SharedKnowledge(losses, [], retentions(limits.space))
            found = TargetSearch(limits, target, score("held", limits.space), settings, shared).run()
        return replace(found, choice=tuple(int(k[own]) for k, own in zip(kept, found.choice, strict=True)))

    def _decoder_bytes(self, share: float) -> int:
        """What the decoder has when its sites have at most `share` of their bytes."""
        decoder = decoder_bytes(self.anatomy)
        sites = sum(decoder.of_dense[site] for site in self.space.dense) if share < 1.0 else 0
        return decoder.total - sites + math.floor(share * sites)

    def plans(self, share: float, evaluations: int) -> dict[str, Architecture]:
        """The plan of each kind."""
        found: dict[str, Architecture] = {}
        searched = self.search(SpaceName.ALL_BITS, share, evaluations)
        of_bits = self.search(SpaceName.BITS, share, evaluations + self.more_of_bits)
        same = [self.held_to(bits, share, evaluations // len(FEWER_BITS)) for bits in FEWER_BITS]
        units = self.held_to(None, share, evaluations)
        if searched is not None:
            found[JOINT] = self.plan(SpaceName.ALL_BITS, share)
            found[ALONE] = self.space.architecture(searched.choice)
            found[ADDITIVE] = self.plan(SpaceName.ALL_BITS, share, Method.ADDITIVE_DP)
        if of_bits is not None:
            found[BITS] = self.plan(SpaceName.BITS, share)
        if then := [x for x in same if x is not None]:
            found[THEN] = self.space.architecture(min(then, key=lambda x: x.metrics.score).choice)
        if units is not None:
            found[UNITS] = self.space.architecture(units.choice)
        return found

    def rows(self, share: float, evaluations: int) -> dict[str, Any]:
        """One row a kind of plans."""
        plans = self.plans(share, evaluations)
        every = list(dict.fromkeys(plans.values()))
        metrics = dict(zip(every, self.on_validation(every), strict=True))
        return {
            "rows": [
                {
                    "part": "joint",
                    "model": self.name,
                    "share": share,
                    "kind": kind,
                    "same_as": sorted(x for x, own in plans.items() if own == architecture and x != kind),
                    "kl": metrics[architecture].kl,
                    "agreement": metrics[architecture].agreement,
                    "decoder_bytes": decoder_bytes(self.anatomy).cost(architecture),
                    "architecture": architecture.document(),
                }
                for kind, architecture in plans.items()
            ]
        }


def joint_rows(
    model: JointModel,
    key: Sequence[str],
    steps: Steps,
    shares: Sequence[float] = SHARES,
    evaluations: int | None = None,
) -> list[dict[str, Any]]:
    """All rows of a model; `key` is what every figure depends on. Killed, a share goes on from its samples."""
    number = evaluations or EVALUATIONS[model.name]
    rows: list[dict[str, Any]] = []
    for share in shares:
        own = _key(model, key, share, number)
        step = steps.call(f"joint {share}", own, partial(model.rows, share, number), modules=_CODE)
        rows += [{**row, "seconds": step.seconds} for row in step.document["rows"]]
    return rows


def kept_smallest(
    model: JointModel, key: Sequence[str], steps: Steps, share: float, evaluations: int | None = None
) -> list[dict[str, Any]] | None:
    """The document of the joint plan that `joint_rows` has found at `share`; None if it was not run."""
    step = steps.kept(f"joint {share}", _key(model, key, share, evaluations or EVALUATIONS[model.name]))
    rows = [] if step is None else [row for row in step.document["rows"] if row["kind"] == JOINT]
    return rows[0]["architecture"] if rows else None


def _key(model: JointModel, key: Sequence[str], share: float, evaluations: int) -> list[str]:
    numbers = NUM_LEVELS[model.name], len(model.scored), evaluations
    return [*key, "joint", *map(str, numbers), model.anatomy.dtype, str(share)]


def joint_figures(rows: Sequence[dict[str, Any]]) -> Found:
    """Ratios of validation KL over the shares at which both kinds have a plan: geometric means, and the greatest.

    Where both are nearly the dense model, below `LEAST_COUNTED`, a ratio says little of plans, and means leave it out;
    a model on which all shares are so has the mean None, so that its bar does not hold. How many are counted and how
    many are `trivial` is said beside them, and `..._all` is the mean over every share.
    """
    kl = {(x["model"], x["kind"], x["share"]): x["kl"] for x in rows}
    names = list(dict.fromkeys(row["model"] for row in rows))
    found: dict[str, dict[str, float | None]] = {}

    def say(figure: str, of: Callable[[Sequence[tuple[float, float]]], float | None], one: str, other: str) -> None:
        found[figure] = {name: of(_pairs(kl, name, one, other)) for name in names}

    compared = [(one, other) for one in (JOINT, ALONE) for other in (BITS, THEN, UNITS)]
    for one, other in (*compared, (ADDITIVE, BITS)):
        say(f"{one}_vs_{other}", lambda pairs: mean([ratio(*x) for x in _counted(pairs)]), one, other)
        say(f"{one}_vs_{other}_all", lambda pairs: mean([ratio(*x) for x in pairs]), one, other)
        say(f"{one}_vs_{other}_worst", lambda pairs: worst([ratio(*x) for x in pairs]), one, other)
        if one == JOINT:
            say(f"joint_shares_vs_{other}", lambda pairs: len(_counted(pairs)), one, other)
            say(f"joint_trivial_vs_{other}", lambda pairs: len(pairs) - len(_counted(pairs)), one, other)
    return found


def _pairs(kl: dict[tuple[str, str, float], float], name: str, one: str, other: str) -> list[tuple[float, float]]:
    """KL of both kinds at each share at which both have a plan."""
    shares = [x for own, kind, x in kl if (own, kind) == (name, other) and (name, one, x) in kl]
    return [(kl[name, one, x], kl[name, other, x]) for x in shares]


def _counted(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [pair for pair in pairs if max(pair) >= LEAST_COUNTED]
