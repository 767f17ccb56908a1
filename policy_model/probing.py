"""Probes: plans that the values would make at budgets that were not searched, measured, and learnt from at once.

A search tells much about a few budgets. In between, and where a device charges attention more than parameters do, or
for running a sub-layer at all, a descent on the values ends where they err the most (the optimiser's curse), and only
a measurement there mends them: the idea of DAgger (Ross et al., arXiv 1011.0686), to label what the learner itself
comes upon. A probe is one evaluation, so it costs a small part of a search of its budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from policy_model.costs import DecisionCosts, parameter_costs
from policy_model.training import TrainingSettings, predictor_of_values
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from pruning.measuring.statistics import ModelStatistics
from storage.records import Sample
from values.encoding import Encoding

SOURCE = "probe"
"""What probes are called where a search's targets are named."""

MOST_TIMES = 4.0
"""A probe's limit charges attention up to so many times what its parameters are, or that part of it."""

STEPS = (0.8191725133961645, 0.6710436067037893, 0.5497004779019702)
"""Of the budgets, of what attention is charged, and of what is charged for running at all: powers of the inverse of the
root of x^4 = x + 1, whose multiples fill the unit cube evenly however many there are (the R3 sequence: Roberts, "The
Unreasonable Effectiveness of Quasirandom Sequences", 2018)."""


class NothingLearntError(InputError):
    """What is known is too little to learn from, or of another kind."""


@dataclass(frozen=True)
class Probe:
    """One plan: what it keeps, the KL that was `expected` of it in nats, and what was measured."""

    architecture: Architecture
    expected: float
    metrics: Metrics


def probe(
    anatomy: ModelAnatomy,
    samples: Sequence[Sample],
    settings: TrainingSettings,
    score: Callable[[Architecture], Metrics],
    count: int,
    *,
    statistics: ModelStatistics | None = None,
    on_probe: Callable[[int, Probe | None], None] | None = None,
) -> list[Probe]:
    """What `count` probes found, each planned by values that have learnt from `samples` and from those before it.

    A plan that is known already is not measured again, nor reported: fewer may come back. What is done is a function of
    the arguments and of what `score` answers.

    Args:
        anatomy: of the model.
        samples: of its searches, in the space of `settings`.
        settings: as a predictor would be trained.
        score: measures an architecture as the samples were measured.
        count: budgets to plan for.
        statistics: of activations.
        on_probe: told how many budgets are done, and what was found there if it was new.

    Raises:
        NothingLearntError: where `policy_model.training.train_predictor` refuses the samples; nothing was scored.
    """
    known = list(samples)
    seen = {sample.architecture for sample in known}
    try:
        predictor = predictor_of_values(anatomy, known, settings, statistics=statistics)
    except InputError as error:
        raise NothingLearntError(error.rule, values=error.values, remedy=error.remedy) from error
    found = []
    for number in range(count):
        costs, spare = _limit(predictor.encoding, number, predictor.info.searched)
        architecture = predictor.encoding.space.architecture(predictor.propose(spare, costs))
        new: Probe | None = None
        if architecture not in seen:
            new = Probe(architecture, predictor.judge(architecture).kl, score(architecture))
            found.append(new)
            seen.add(architecture)
            known.append(replace(known[0], architecture=architecture, metrics=new.metrics))
            predictor = predictor_of_values(anatomy, known, settings, statistics=statistics)
        if on_probe is not None:
            on_probe(number + 1, new)
    return found


def _limit(encoding: Encoding, number: int, searched: tuple[float, float]) -> tuple[DecisionCosts, int]:
    """The costs of probe `number`, and what may be spent above the cheapest choice: within what was `searched`, as a
    part of the parameters that may go.

    A sub-layer's time has a part that any of it takes, and one that grows with its units: here they are shares of what
    all of it costs, which differ from probe to probe.
    """
    budget, charged, fixed = ((0.5 + number * step) % 1.0 for step in STEPS)
    factor = MOST_TIMES ** (2.0 * charged - 1.0)
    is_attention = [decision.sites[0].sublayer is Sublayer.ATTENTION for decision in encoding.space.decisions]
    weights = np.where(is_attention, factor, 1.0)[:, None]
    growing = parameter_costs(encoding).excess * weights
    at_all = (growing > 0) * weights * (growing[..., -1].mean() / weights.mean())
    excess = np.rint((1.0 - fixed) * growing + fixed * at_all).astype(np.int64)
    least = encoding.least_parameters / encoding.most_parameters
    low, high = searched
    kept = low + (high - low) * budget
    spare = int(excess[..., -1].sum() * max(kept - least, 0.0) / (1.0 - least))
    return DecisionCosts(excess), spare
