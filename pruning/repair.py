"""From a configuration of coarse levels to integer widths that use a budget up.

The search and the predictor choose among K levels a layer; a target rarely falls on them. The repair moves single
rounding steps until the widths fit the budget and no layer can grow by one more step.
"""

from collections.abc import Callable, Sequence

from pruning.anatomy import ModelAnatomy
from pruning.errors import InfeasibleTargetError


def repair_widths(
    anatomy: ModelAnatomy,
    widths: Sequence[int],
    budget: int,
    *,
    round_to: int,
    marginal: Sequence[float] | Callable[[int, int], float] | None = None,
    cut_parameters: Sequence[int] | None = None,
) -> list[int]:
    """Widths [L] near `widths`, multiples of `round_to` (or dense), that cost at most `budget` parameters.

    The result leaves less than one rounding step of any layer that is not dense. `marginal` says how much one more step
    is worth in each layer, as numbers [L] or as a function of (layer, present width); by default it is the layer's
    relative narrowness. Steps are taken from the layer worth least and given to the layer worth most. `cut_parameters`
    [L] is what a layer costs in addition once it is narrower than dense (a compensating bias).

    Raises:
        InfeasibleTargetError: the budget is below every layer at `round_to` channels.
    """
    layers = anatomy.layers
    smallest = [min(round_to, x.ffn_width) for x in layers]
    repaired = [
        x.ffn_width if w >= x.ffn_width else max(m, w // round_to * round_to)
        for w, x, m in zip(widths, layers, smallest, strict=True)
    ]

    def price(index: int, width: int) -> int:
        layer = layers[index]
        added = cut_parameters[index] if cut_parameters is not None and width < layer.ffn_width else 0
        return width * layer.ffn_parameters_per_channel + added

    def worth(index: int) -> float:
        if callable(marginal):
            return marginal(index, repaired[index])
        return marginal[index] if marginal is not None else 1.0 - repaired[index] / layers[index].ffn_width

    remaining = budget - sum(price(i, w) for i, w in enumerate(repaired))
    while remaining < 0:
        shrinkable = [i for i, w in enumerate(repaired) if w > smallest[i]]
        if not shrinkable:
            raise InfeasibleTargetError(
                f"the budget is below {round_to} channels in every layer",
                values=f"{budget} parameters",
                remedy="Ask for less sparsity or lower round_to",
                nearest=float(sum(price(i, w) for i, w in enumerate(smallest))),
            )
        index = min(shrinkable, key=lambda i: (worth(i), i))
        narrower = max(smallest[index], (repaired[index] - 1) // round_to * round_to)
        remaining += price(index, repaired[index]) - price(index, narrower)
        repaired[index] = narrower
    while True:
        steps = {i: min(round_to, layers[i].ffn_width - w) for i, w in enumerate(repaired)}
        prices = {i: price(i, repaired[i] + step) - price(i, repaired[i]) for i, step in steps.items()}
        growable = [i for i, step in steps.items() if step > 0 and prices[i] <= remaining]
        if not growable:
            return repaired
        index = max(growable, key=lambda i: (worth(i), -i))
        remaining -= prices[index]
        repaired[index] += steps[index]
