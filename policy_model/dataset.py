"""Stored samples as training examples: every sample teaches the values, those near the frontier teach the policy.

Letters: N samples, L decoder layers, M ensemble members, P probes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_model.encoding import Encoding, log_kl, pruned_layers
from pruning.anatomy import ModelAnatomy
from pruning.errors import InputError
from pruning.levels import LevelGrid
from storage.records import Sample

MIN_SAMPLES = 64
MIN_SEARCHED_SAMPLES = 20
"""Samples that prune two layers or more. A 90% interval from held-out residuals needs 19 of them at least."""

FRONTIER_BANDWIDTH = 0.03
"""Retention within which samples count as neighbours: 3 of the 96 level steps of 12 layers of 8 levels."""


PROBE_HALF_WIDTH = 0.03
"""Retention: a probe leaves out everything searched within this distance of one budget."""


@dataclass(frozen=True)
class TrainingData:
    """Samples as tensors, in an order that does not depend on the order they were stored in.

    Attributes:
        fractions: [N, L] kept fraction of each layer.
        log_kl: [N] log KL in nats.
        retention: [N] FFN parameters kept, as a fraction.
        gap: [N] log KL above the frontier, 0 at the best known configurations.
        searched: bool [N] prunes two layers or more.
        levels: [N, L] 0-based levels, -1 where the widths are not on the grid.
    """

    fractions: Tensor
    log_kl: Tensor
    retention: Tensor
    gap: Tensor
    searched: Tensor
    levels: Tensor

    @property
    def num_samples(self) -> int:
        return len(self.log_kl)

    @property
    def on_grid(self) -> Tensor:
        """bool [N]: can be decoded by the policy."""
        return (self.levels >= 0).all(dim=1)

    def imitation_weights(self, temperature: float) -> Tensor:
        """[N] exp(-gap / temperature), 0 for what the policy cannot decode: near the best known counts most."""
        return torch.exp(-self.gap / temperature) * self.on_grid


def check_samples(anatomy: ModelAnatomy, samples: Sequence[Sample]) -> list[Sample]:
    """The distinct samples, ordered by widths.

    Raises:
        InputError: too few of them, measured under different conditions, or not of this model.
    """
    for what in ("model_id", "ranking_sha256", "calibration_id"):
        found = sorted({getattr(sample, what) for sample in samples})
        if len(found) > 1:
            raise InputError(
                f"all samples of a training must share one {what}",
                values=", ".join(found[:3]),
                remedy=f"Choose the samples of one {what}",
            )
    dense = [layer.ffn_width for layer in anatomy.layers]
    for sample in samples:
        if len(sample.widths) != len(dense) or any(not 1 <= w <= d for w, d in zip(sample.widths, dense, strict=False)):
            raise InputError(
                "a sample's widths must lie between 1 and the model's own",
                values=f"{list(sample.widths)} for a model of {dense}",
                remedy="Choose samples of this model",
            )
        if not -1e-3 <= sample.metrics.kl < float("inf"):
            raise InputError(
                "a sample's KL must be a finite number that is not negative",
                values=f"kl={sample.metrics.kl} at {list(sample.widths)}",
                remedy="Remove the sample and evaluate it again",
            )
    distinct: dict[tuple[int, ...], Sample] = {}
    for sample in samples:
        distinct.setdefault(sample.widths, sample)
    searched = sum(1 for widths in distinct if sum(w < d for w, d in zip(widths, dense, strict=True)) >= 2)
    if len(distinct) < MIN_SAMPLES or searched < MIN_SEARCHED_SAMPLES:
        raise InputError(
            f"training a predictor needs at least {MIN_SAMPLES} samples, {MIN_SEARCHED_SAMPLES} of which prune two "
            "layers or more",
            values=f"{len(distinct)} samples, {searched} of them prune two layers or more",
            remedy="Add some with `lop search`",
        )
    return [distinct[widths] for widths in sorted(distinct)]


def samples_sha256(samples: Sequence[Sample]) -> str:
    """Content hash over widths and metrics, whatever the order."""
    rows = sorted((list(s.widths), s.metrics.kl, s.metrics.nll, s.metrics.accuracy) for s in samples)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def training_data(grid: LevelGrid, encoding: Encoding, samples: Sequence[Sample]) -> TrainingData:
    """Tensors of `samples`, kept in their order."""
    widths = torch.tensor([sample.widths for sample in samples])
    values = torch.tensor([log_kl(sample.metrics.kl) for sample in samples])
    parameters_per_channel = encoding.level_costs[:, -1].double() / encoding.dense_widths
    kept = (widths.double() * parameters_per_channel).sum(dim=1) / grid.max_cost_from[0]
    configurations = [grid.configuration_of(list(sample.widths)) for sample in samples]
    levels = [[k - 1 for k in c] if c is not None else [-1] * grid.num_layers for c in configurations]
    retention = kept.float()
    return TrainingData(
        fractions=encoding.kept_fractions(widths),
        log_kl=values,
        retention=retention,
        gap=values - frontier(retention, values, retention),
        searched=torch.tensor([len(pruned_layers(grid, sample.widths)) >= 2 for sample in samples]),
        levels=torch.tensor(levels),
    )


def frontier(retention: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """Best known log KL at the retentions `at` [A], from samples [N]: a smooth lower envelope, never above a sample.

    A sample bounds the frontier at its own retention and at every higher one (more channels are never worse for the
    best configuration); at a slightly lower retention it bounds it too, with a penalty that grows with the distance.
    """
    missing = (retention[None, :] - at[:, None]).clamp(min=0.0) / FRONTIER_BANDWIDTH
    return (values[None, :] + missing.square()).min(dim=1).values


def held_out(data: TrainingData, num_members: int, num_probes: int, seed: int) -> Tensor:
    """bool [M + P, N]: which samples each member and each probe does not train on.

    Members leave out a random eighth each, disjoint while there are enough eighths. Probes leave out a range of
    retention each, inside the searched range: how well the values fare between searched budgets.
    """
    N = data.num_samples
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(num_members + num_probes, N, dtype=torch.bool)
    for member in range(num_members):
        mask[member, order[member % 8 :: 8]] = True
    searched = data.retention[data.searched].sort().values
    for probe in range(num_probes):
        centre = searched[len(searched) * (probe + 1) // (num_probes + 1)]
        mask[num_members + probe] = ((data.retention - centre).abs() <= PROBE_HALF_WIDTH) & data.searched
    return mask
