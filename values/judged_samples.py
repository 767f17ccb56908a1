"""Samples that were measured, and how they are judged by values that do not know them: what intervals are made of.

What is left out is about as far from the rest as what is asked about (as in nearest neighbour distance matching, Milà
et al. 2022). Any configuration at a new target knows of the targets around it only: samples are judged without all
others of about their retention. A plan of the predictor's own is made for a target that may be anywhere between two
searched ones. Where a process of independent increments is known at both ends of a gap s, its variance at a place
inside is s / 6 on average; with the place's own target left out the gap is 2 s and the variance in its middle s / 2.
So what leaving out the target adds to leaving out only the sample is expected of a plan by a third, and its quantiles
are of both kinds of scores, the former counting a third. A plan is near the best that is known, so samples count for
it by the weight that they have in the values (weighted conformal prediction, Tibshirani et al., arXiv 1904.06019).

Letters: R samples, I of them in the inner groups.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pruning.arrays import FloatArray, IntArray
from values.held_out import HeldOutResiduals, inner_groups
from values.quantiles import Quantiles

GROUPED_SHARE = 1.0 / 3.0
"""Of a plan's scores: those without all samples of about their retention. See above."""

LEAST_SCORES = 40
"""Fewer than 19 scores could not tell the ends of a 90% interval."""


@dataclass(frozen=True, eq=False)
class JudgedSamples:
    """Samples [R] with their measured `log_kl`, `alone` judged without themselves, `grouped` without their group.

    `groups` [R] as `held_out.retention_groups`; `weights` [R] in (0, 1], the nearer to the frontier the more.
    """

    log_kl: FloatArray
    alone: HeldOutResiduals
    grouped: HeldOutResiduals
    groups: IntArray
    weights: FloatArray

    def at(self, index: NDArray[np.bool_]) -> "JudgedSamples":
        """Those of `index`."""
        return JudgedSamples(
            self.log_kl[index],
            self.alone.at(index),
            self.grouped.at(index),
            self.groups[index],
            self.weights[index],
        )

    @cached_property
    def inner(self) -> NDArray[np.bool_]:
        """bool [R]: judged without its group by more than extrapolation."""
        return inner_groups(self.groups, LEAST_SCORES)

    @cached_property
    def predicted_alone(self) -> FloatArray:
        """[R] log KL as predicted without the sample."""
        predicted: FloatArray = self.log_kl - self.alone.errors
        return predicted

    @cached_property
    def predicted_inner(self) -> FloatArray:
        """[I] log KL as predicted without the sample's group."""
        predicted: FloatArray = self.log_kl[self.inner] - self.grouped.at(self.inner).errors
        return predicted

    def quantiles_of_plans(self, alone: FloatArray, inner: FloatArray) -> Quantiles:
        """For what the predictor chose, from scores without the sample [R] and without its group [I]."""
        shares = ((1 - GROUPED_SHARE, self.weights), (GROUPED_SHARE, self.weights[self.inner]))
        counts = np.concatenate([share * weights / weights.sum() for share, weights in shares])
        predicted = np.concatenate([self.predicted_alone, self.predicted_inner])
        return Quantiles.of(np.concatenate([alone, inner]), predicted, counts)

    def quantiles_of_samples(self, inner: FloatArray) -> Quantiles:
        """For any other configuration, from scores without the sample's group [I]."""
        return Quantiles.of(inner, self.predicted_inner)
