"""Where units and bits may change: what bits alone can do, which is searched first.

The additive program sums up what units and bits lose alone, and units that go lose more together than that says. So
half of a target's evaluations go to bits alone, found by the same means; the other half begins with all that they have
shown, and what it finds has to be surely better (`mcts.result`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from mcts.search import SharedKnowledge, TargetSearch
from mcts.settings import SearchSettings
from mcts.targets import SearchTarget
from pruning.allocators.additive import interpolated_losses
from pruning.allocators.evolution import Score
from pruning.arrays import FloatArray
from pruning.errors import InfeasibleBudgetError
from pruning.measuring.metrics import Metrics
from pruning.planning.bit_spaces import with_all_units
from pruning.planning.limits import Limits
from pruning.planning.space import Choice, Space
from values.surrogate import ScoredChoice, retentions


class BitsAlone:
    """Searches among the options of `space` that keep all units, target by target.

    `sensitivity` [N, K] is the scan of `space`.
    """

    def __init__(self, space: Space, sensitivity: FloatArray) -> None:
        self._space, self._sensitivity = space, sensitivity
        self._kept = with_all_units(space)
        self._samples: list[ScoredChoice] = []

    def search(
        self,
        limits: Limits,
        target: SearchTarget,
        score: Score,
        settings: SearchSettings,
        *,
        index: int = 0,
        on_evaluation: Callable[[int, Metrics], None] | None = None,
    ) -> dict[Choice, Metrics]:
        """At most half of the settings' evaluations within `limits`: choices of the space, in the order in which they
        were scored. None where nothing else may change, or bits alone cannot meet the limits.

        `score` is of choices of the space; the other arguments are as those of `TargetSearch`.
        """
        half = settings.num_evaluations // 2
        if half == 0 or all(len(k) == count for k, count in zip(self._kept, self._space.counts, strict=True)):
            return {}
        try:
            own = limits.among(self._kept)
        except InfeasibleBudgetError:
            return {}
        losses = interpolated_losses(self._space, self._sensitivity, own.space)
        search = TargetSearch(
            own,
            target,
            lambda choices: score([self._placed(choice) for choice in choices]),
            replace(settings, num_evaluations=half),
            SharedKnowledge(losses, self._samples, retentions(own.space)),
            index=index,
            on_evaluation=on_evaluation,
        )
        search.run()
        return {self._placed(choice): metrics for choice, metrics in search.scored.items()}

    def _placed(self, choice: Sequence[int]) -> Choice:
        """The choice of the space that is `choice` among the options that keep all units."""
        return tuple(int(kept[k]) for kept, k in zip(self._kept, choice, strict=True))
