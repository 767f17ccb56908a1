"""The methods that choose what a plan keeps: each is declared here, and nowhere else.

The names that a request may give, who answers for which, and what a user reads of them follow from the declarations.
What computes with statistics is in `pruning.allocators.registry`.
"""

from enum import Enum, StrEnum

from pruning.measuring.statistics import StatisticsKind
from pruning.planning.axis_spaces import SPACES_OF_UNITS, SpaceName


class Family(Enum):
    """The data that a method decides from. The value says how a user comes by them."""

    PREDICTOR = "needs a predictor (`lop train`)"
    SCAN = "needs a sensitivity scan (`lop search` begins with one)"
    NOTHING = "needs no data"
    STATISTICS = "needs statistics of the model (`lop model measure`)"
    SEARCH = "needs a finished search near the target (`lop search --method`)"


_SPACES: dict[Family, tuple[SpaceName, ...]] = {
    Family.PREDICTOR: SPACES_OF_UNITS,
    Family.SCAN: tuple(SpaceName),
    Family.NOTHING: tuple(SpaceName),
    Family.STATISTICS: (SpaceName.FFN,),
    Family.SEARCH: tuple(SpaceName),
}


class Method(StrEnum):
    """How it is chosen what a plan keeps: the value is the name in requests and plans.

    Attributes:
        family: what it decides from.
        about: one line for who has not heard of it.
        statistics: the kind that it decides from, of the family STATISTICS.
        compensates: it adds biases to the layers that it cuts, which the limits that it gets must count.
        spaces: what it can be asked to change. Unless it is said, methods that decide from statistics know FFN widths
            alone, predictors numbers of units, and all others everything.
    """

    _value_: str
    family: Family
    about: str
    statistics: StatisticsKind | None
    compensates: bool
    spaces: tuple[SpaceName, ...]

    def __new__(
        cls,
        name: str,
        family: Family = Family.NOTHING,  # defaults: `Method("lop")`, a look-up, has the same signature for mypy
        about: str = "",
        statistics: StatisticsKind | None = None,
        compensates: bool = False,
        spaces: tuple[SpaceName, ...] = (),
    ) -> "Method":
        member = str.__new__(cls, name)
        member._value_ = name
        member.family, member.about, member.statistics, member.compensates = family, about, statistics, compensates
        member.spaces = spaces or _SPACES[family]
        return member

    LOP = "lop", Family.PREDICTOR, "the predictor that was trained on searches of this model"
    ADDITIVE_DP = "additive-dp", Family.SCAN, "the least sum of sensitivities one by one, by dynamic programming"
    UNIFORM = "uniform", Family.NOTHING, "the same retention in every layer"

    WANDA_SP = (
        "wanda-sp",
        Family.STATISTICS,
        "weights x activations, the same retention in every layer",
        StatisticsKind.ACTIVATIONS,
    )
    FLAP = "flap", Family.STATISTICS, "fluctuation, with biases for what goes", StatisticsKind.ACTIVATIONS, True
    LLM_PRUNER = (
        "llm-pruner",
        Family.STATISTICS,
        "weights x gradients, one retention for the middle layers",
        StatisticsKind.GRADIENTS,
    )
    OWL = "owl", Family.STATISTICS, "layers with more outliers keep more", StatisticsKind.ACTIVATIONS
    ECOFLAP = "ecoflap", Family.STATISTICS, "losses under perturbed weights", StatisticsKind.ZEROTH_ORDER
    SHORTGPT = (
        "shortgpt",
        Family.STATISTICS,
        "layers that change their input less go, one after the other",
        StatisticsKind.ACTIVATIONS,
        False,
        (SpaceName.FFN, SpaceName.LAYERS, SpaceName.ALL),
    )

    MCTS = "mcts", Family.SEARCH, "the best configuration of this product's search"
    EVOLUTION = "evolution", Family.SEARCH, "the best of an evolutionary search"
    RANDOM = "random", Family.SEARCH, "the best of a random search"


BEST_FIRST = (Method.LOP, Method.MCTS, Method.ADDITIVE_DP, Method.UNIFORM)
"""Tried in this order for a request that names no method; the last one answers every feasible target. A tree search
answers it only within one level step of what it searched: what it measured beats what the additive program sums up.
"""


def describe_methods() -> str:
    """What a user reads who is to choose one, in Markdown."""
    *first, last = (f"`{method}`" for method in BEST_FIRST)
    families = []
    for family in Family:
        members = "; ".join(f"`{method}`: {_about(method)}" for method in Method if method.family is family)
        families.append(f"{members} ({family.value}).")
    return (
        f"How it is chosen what to keep. By default the first of {', '.join(first)} and {last} that the stored data "
        f"allow, `{Method.MCTS}` only if a search is finished within one level step of the target. {' '.join(families)}"
    )


def _about(method: Method) -> str:
    """One line, with the spaces that it is for, if those are not all."""
    if set(method.spaces) >= set(SPACES_OF_UNITS):
        return method.about
    *others, last = method.spaces
    where = f"{', '.join(others)} and {last}" if others else f"{last} only"
    return f"{method.about}, space {where}"
