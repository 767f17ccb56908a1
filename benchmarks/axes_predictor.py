"""The predictor of one space, trained on one search of it, and the plans that it makes with parts left out.

    lop                     as the service answers: what was measured near by, what lies on the ways between that, and
                            the additive program's choice; the most promising one is improved on the values
    lop-policy              with candidates of a policy in the additive program's place
    lop-untrained           with those of a policy with freshly initialised weights
    lop-no-ways             without what was measured and what lies between
    lop-no-descent          the best candidate by the values, not improved
    lop-policy-alone        the best of the policy's candidates, not improved
    lop-untrained-alone     the same of an untrained policy
    lop-greedy-alone        the policy's most likely configuration, without samples, not improved

In spaces of one decision a layer `lop` has the policy's candidates, too, and there are no other rows.
It learns from one search of the sparsities and of the shares of time, as `lop search --device` runs it: targets in
between are new to it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.ablations import untrained_policy
from benchmarks.axes_searches import Found
from benchmarks.axes_targets import Target, TargetLimits
from benchmarks.measured_code import measured_code
from benchmarks.measured_model import MeasuredModel
from policy_model.choosing import Parts
from policy_model.predictor import Predictor
from policy_model.training import TrainingSettings, train_predictor
from pruning.anatomy.architecture import Architecture
from pruning.measuring.metrics import Metrics
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.axis_spaces import SpaceName, fine_space
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO
from storage.records import Sample

LOP = "lop"
WITH_POLICY, UNTRAINED = "lop-policy", "lop-untrained"
POLICY_ALONE, UNTRAINED_ALONE = "lop-policy-alone", "lop-untrained-alone"
GREEDY_ALONE = "lop-greedy-alone"
NO_WAYS, NO_DESCENT = "lop-no-ways", "lop-no-descent"
PARTS = {
    LOP: Parts(candidates=0),
    WITH_POLICY: Parts(),
    UNTRAINED: Parts(),
    NO_WAYS: Parts(candidates=0, ways=False),
    NO_DESCENT: Parts(candidates=0, walkers=0),
    POLICY_ALONE: Parts(ways=False, walkers=0),
    UNTRAINED_ALONE: Parts(ways=False, walkers=0),
    GREEDY_ALONE: Parts(candidates=1, ways=False, walkers=0),
}
"""Of the joint space."""

TRAINING = TrainingSettings(policy=True)
"""As `lop train` has it, of each space and seed; in the joint space it trains no policy, whose rows need one."""

LEARNT_FROM = ("policy_model/", "values/")
"""What is imported from there decides what comes of a training, beside its samples and settings."""


def train(
    model: MeasuredModel,
    name: SpaceName,
    scanned: Mapping[Architecture, Metrics],
    searches: Iterable[Found],
    work: Path,
    *,
    seed: int,
) -> Predictor:
    """A predictor of the space, from the scan and what the searches scored. A training that was killed goes on.

    Raises InputError where the samples are too few.
    """
    scored = {**scanned}
    for search in searches:
        scored |= search.scored
    key = ("benchmark", model.ranking.sha256, model.calibration_id)
    samples = [Sample(*key, architecture, metrics, 0.0, LOP) for architecture, metrics in scored.items()]
    return train_predictor(
        model.anatomy,
        samples,
        replace(TRAINING, axes=name, seed=seed),
        statistics=model.statistics(StatisticsKind.ACTIVATIONS)[0],
        checkpoint_folder=_folder(model, name, work, [*scored.items()], seed),
    )


def _folder(
    model: MeasuredModel, name: SpaceName, work: Path, scored: Sequence[tuple[Architecture, Metrics]], seed: int
) -> Path:
    """Where a training of exactly this keeps what it has: a folder takes one training only."""
    code = {file: digest for file, digest in measured_code().items() if file.startswith(LEARNT_FROM)}
    samples = [[architecture.key, repr(metrics.kl), repr(metrics.score)] for architecture, metrics in scored]
    content = json.dumps([model.anatomy.fingerprint, str(name), seed, sorted(code.items()), samples])
    return work / f"training-{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def plans(
    predictor: Predictor,
    model: MeasuredModel,
    name: SpaceName,
    limits: TargetLimits,
    targets: Sequence[Target],
    methods: Sequence[str] = (LOP,),
) -> list[Found]:
    """What the predictor answers at each of `targets` that can be met in fine steps, by each of `methods`."""
    space = fine_space(model.anatomy, name, round_to=DEFAULT_ROUND_TO)
    found = []
    for method in methods:
        weights = untrained_policy(predictor.config) if method in (UNTRAINED, UNTRAINED_ALONE) else None
        planner = predictor if method == LOP else predictor.with_parts(PARTS[method], weights)
        for target in targets:
            within = limits.of(space, target)
            if within is not None:
                planned = planner.plan(model.anatomy, within).architecture
                found.append(Found(method, target, planned, 0.0))
    return found
