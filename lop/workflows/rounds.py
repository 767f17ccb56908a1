"""Improvement over rounds: the predictor leads the search, the search adds samples, the predictor is trained on them.

As AlphaZero alternates self-play and learning. The budgets of a round are those that the predictor expects to be worst
at, one in every part of the searched range: where little is known near by, or where it was wrong before. What a round
was worth is measured on the KL of the predictor's own plans before and after: at these budgets, against the best that
the search found there, and at budgets in between, which it did not search.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.memo import EvaluateInOrder, MemoisedEvaluator
from lop.workflows.training import train_model, training_samples
from mcts.progress import Progress, silent
from mcts.result import SearchResult
from mcts.settings import SearchSettings
from mcts.worker import run_search
from policy_model.predictor import Predictor
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.planning.target import counted, usual_scope
from storage.contract import Repository
from storage.records import PredictorRecord, Sample
from values.decisions import units_in
from values.kl_floor import KL_FLOOR_NATS

if TYPE_CHECKING:
    from policy_model.progress import ProgressCallback
    from policy_model.training import TrainingSettings

SOURCE = "rounds"
"""`source` of the samples that measure the predictor's own plans."""

DEFAULT_TARGETS = 8
DEFAULT_EVALUATIONS = 24
GUIDED_SIMULATIONS = 8
"""Of the tree, per evaluation: they are how the predictor's prior leads a search."""

CHOICES_PER_TARGET = 6
"""Budgets that are looked at for each one that is searched."""


@dataclass(frozen=True)
class RoundSettings:
    """How much a round does: `num_targets` budgets of `num_evaluations` configurations each.

    Budgets within `margin` (a fraction of the parameters that targets count) of one of the sparsities in `avoid` are
    left alone: to keep targets that are to judge the predictor out of its training.
    """

    num_targets: int = DEFAULT_TARGETS
    num_evaluations: int = DEFAULT_EVALUATIONS
    avoid: tuple[float, ...] = ()
    margin: float = 0.02

    def __post_init__(self) -> None:
        if self.num_targets < 1 or self.num_evaluations < 2:
            raise InputError(
                "a round needs at least one target and two evaluations",
                values=f"{self.num_targets} targets, {self.num_evaluations} evaluations",
            )


@dataclass(frozen=True)
class RoundReport:
    """What one round did and gained.

    Attributes:
        number: from 1.
        sparsities: of the budgets that were searched, [T]: of FFN parameters, in spaces that change more the decoder's.
        plan_kl_before, plan_kl_after: measured calibration KL of the predictor's own plans there, [T].
        plan_agreement_before, plan_agreement_after: their agreement with the dense model, [T], None where it was not
            measured.
        best_kl: the best known there after the round, [T].
        between: sparsities half-way between those budgets, [T - 1] at most, which nothing was searched for.
        between_kl_before, between_kl_after: as `plan_kl_before` and `plan_kl_after`, at `between`.
        new_samples: samples that the round added.
        predictor: id of the one trained at the end.
    """

    number: int
    sparsities: tuple[float, ...]
    plan_kl_before: tuple[float, ...]
    plan_kl_after: tuple[float, ...]
    best_kl: tuple[float, ...]
    between: tuple[float, ...]
    between_kl_before: tuple[float, ...]
    between_kl_after: tuple[float, ...]
    new_samples: int
    predictor: str
    plan_agreement_before: tuple[float | None, ...] = ()
    plan_agreement_after: tuple[float | None, ...] = ()

    @property
    def ratio_before(self) -> float:
        """Geometric mean of the plans' KL over the best known, before the round."""
        return _mean_ratio(self.plan_kl_before, self.best_kl)

    @property
    def ratio_after(self) -> float:
        """As `ratio_before`, with the predictor trained at the end."""
        return _mean_ratio(self.plan_kl_after, self.best_kl)

    @property
    def ratio_between(self) -> float | None:
        """Geometric mean of the plans' KL after the round over that before, `between` the budgets; None without any."""
        return _mean_ratio(self.between_kl_after, self.between_kl_before) if self.between else None

    @property
    def agreement_before(self) -> float | None:
        """Mean agreement of the plans with the dense model before the round; None if it was not measured of all."""
        return _mean_share(self.plan_agreement_before)

    @property
    def agreement_after(self) -> float | None:
        """As `agreement_before`, with the predictor trained at the end."""
        return _mean_share(self.plan_agreement_after)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        ratios = {name: getattr(self, name) for name in ("ratio_before", "ratio_after", "ratio_between")}
        return asdict(self) | ratios


def train_in_rounds(
    repository: Repository,
    model_id: str,
    calibration_id: str,
    evaluate: EvaluateInOrder,
    settings: "TrainingSettings",
    num_rounds: int,
    rounds: RoundSettings | None = None,
    *,
    first_round: int = 1,
    on_training: "ProgressCallback | None" = None,
    on_search: Progress = silent,
    on_round: Callable[[RoundReport], None] | None = None,
) -> tuple[PredictorRecord, list[RoundReport]]:
    """A predictor after round `num_rounds`, registered as every one on the way, and what the rounds gained.

    Killed and run again, it begins with `first_round` on all that is stored by then: nothing that was measured is lost.
    `on_training` is told of every training's steps, `on_search` of every search's evaluations.

    Raises what `train_model` and `run_search` raise.
    """
    rounds = rounds or RoundSettings()
    settings = replace(settings, policy=True)  # which leads the searches, whether plans hear it or not

    def train() -> PredictorRecord:
        return train_model(repository, model_id, settings, calibration_id=calibration_id, progress=on_training)

    anatomy = repository.get_model(model_id).anatomy
    total = counted(anatomy, settings.axes).total
    record, reports = train(), []
    for number in range(first_round, num_rounds + 1):
        predictor = Predictor.stored(repository, record)
        samples = training_samples(repository, model_id, calibration_id, predictor.encoding.space)
        kept = total - predictor.encoding.most_parameters
        budgets = uncertain_budgets(predictor, samples, rounds, seed=[settings.seed, number], kept=kept)
        search = SearchSettings(
            budgets=budgets,
            axes=settings.axes,
            scope=usual_scope(settings.axes),
            num_evaluations=rounds.num_evaluations,
            seed=settings.seed + number,
            num_levels=settings.num_levels,
            round_to=settings.round_to,
            num_simulations=GUIDED_SIMULATIONS,
        )

        def measured(who: Predictor, targets: Sequence[int], kept: int = kept) -> list[Metrics]:
            spared = [target - kept for target in targets]
            return _measured_plans(repository, model_id, calibration_id, evaluate, who, spared)

        before = measured(predictor, budgets)
        result = run_search(
            repository, model_id, calibration_id, evaluate, search, on_search, guide=predictor, known=samples
        )
        record = train()
        trained = Predictor.stored(repository, record)
        after = measured(trained, budgets)
        # Measured now: what is measured is learnt from, and nothing of this may have been.
        middles = _between(budgets, total, rounds)
        middle_before, middle_after = (measured(each, middles) for each in (predictor, trained))
        reports.append(
            RoundReport(
                number=number,
                sparsities=_sparsities(budgets, total),
                plan_kl_before=_kl(before),
                plan_kl_after=_kl(after),
                best_kl=_best_known(result, _kl(before), _kl(after)),
                between=_sparsities(middles, total),
                between_kl_before=_kl(middle_before),
                between_kl_after=_kl(middle_after),
                new_samples=len(training_samples(repository, model_id, calibration_id, predictor.encoding.space))
                - len(samples),
                predictor=record.id,
                plan_agreement_before=tuple(m.agreement for m in before),
                plan_agreement_after=tuple(m.agreement for m in after),
            )
        )
        if on_round is not None:
            on_round(reports[-1])
    return record, reports


def uncertain_budgets(
    predictor: Predictor, samples: Sequence[Sample], rounds: RoundSettings, *, seed: Sequence[int], kept: int = 0
) -> tuple[int, ...]:
    """Parameters of the round's targets, ascending: in each part of the searched range, the one whose plan has the
    largest error to expect. Fewer where parts are narrower than a step of one decision's options, or to be avoided.

    `kept` are those that targets count and the space leaves alone.

    Raises InputError if all are.
    """
    encoding = predictor.encoding
    total, lowest = encoding.most_parameters + kept, encoding.least_parameters + kept
    units = [found for sample in samples if (found := units_in(encoding.space, sample.architecture)) is not None]
    fractions = encoding.kept_fractions(units)
    searched = kept + fractions @ encoding.parameters[:, -1]
    deep = searched[(fractions < 1.0).sum(axis=1) > 1]
    low = max(float(deep.min()), lowest)
    high = max(low, min(float(deep.max()), 0.98 * total))
    steps = np.diff(encoding.parameters, axis=1)
    step = int(steps[steps > 0].min())  # options that are repeated are no step
    rng = np.random.default_rng(list(seed))
    edges = np.linspace(low, high, rounds.num_targets + 1)
    chosen: list[int] = []
    for left, right in itertools.pairwise(edges):
        budgets = [int(b) for b in rng.uniform(left, right, CHOICES_PER_TARGET)]
        free = [b for b in budgets if _is_free(b, total, rounds) and (not chosen or b - chosen[-1] >= step)]
        if free:
            chosen.append(max(free, key=lambda budget: predictor.uncertainty(predictor.propose(budget - lowest))))
    if not chosen:
        raise InputError(
            "a round needs a budget that is not to be avoided",
            values=f"{len(rounds.avoid)} sparsities with a margin of {rounds.margin}",
            remedy="Avoid fewer, or lower the margin",
        )
    return tuple(chosen)


def _is_free(budget: int, total: int, rounds: RoundSettings) -> bool:
    return all(abs(1.0 - budget / total - sparsity) > rounds.margin for sparsity in rounds.avoid)


def _between(budgets: Sequence[int], total: int, rounds: RoundSettings) -> tuple[int, ...]:
    middles = ((a + b) // 2 for a, b in itertools.pairwise(budgets))
    return tuple(middle for middle in middles if _is_free(middle, total, rounds))


def _sparsities(budgets: Sequence[int], total: int) -> tuple[float, ...]:
    return tuple(round(1.0 - budget / total, 4) for budget in budgets)


def _measured_plans(
    repository: Repository,
    model_id: str,
    calibration_id: str,
    evaluate: EvaluateInOrder,
    predictor: Predictor,
    budgets: Sequence[int],
) -> list[Metrics]:
    """Calibration metrics of what the predictor proposes for each of `budgets`, of the parameters that may go."""
    ranking = repository.get_model(model_id).ranking_sha256
    score = MemoisedEvaluator(repository, model_id, ranking, calibration_id, evaluate, SOURCE)
    encoding = predictor.encoding
    plans = [predictor.propose(budget - encoding.least_parameters) for budget in budgets]
    return score([encoding.space.architecture(plan) for plan in plans])


def _kl(plans: Sequence[Metrics]) -> tuple[float, ...]:
    return tuple(metrics.kl for metrics in plans)


def _best_known(result: SearchResult, *plans: Sequence[float]) -> tuple[float, ...]:
    return tuple(min(target.metrics.kl, *found) for target, *found in zip(result.targets, *plans, strict=True))


def _mean_ratio(found: Sequence[float], best: Sequence[float]) -> float:
    return geometric_mean(max(a, KL_FLOOR_NATS) / max(b, KL_FLOOR_NATS) for a, b in zip(found, best, strict=True))


def _mean_share(shares: Sequence[float | None]) -> float | None:
    measured = [share for share in shares if share is not None]
    return fmean(measured) if measured and len(measured) == len(shares) else None
