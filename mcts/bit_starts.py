"""What a search begins with where bits may change, besides what it begins with anywhere: plans that one would make by
hand, one after the other."""

from pruning.allocators.additive import additive_architecture
from pruning.anatomy.packed_weights import FEWER_BITS
from pruning.arrays import FloatArray
from pruning.errors import InfeasibleBudgetError
from pruning.planning.bit_spaces import in_same_bits
from pruning.planning.limits import Limits
from pruning.planning.space import Choice


def bit_starts(limits: Limits, loss: FloatArray) -> list[Choice]:
    """The same bits everywhere, 8 or 4 or as they are, and the units that the additive program keeps then, as far as
    that meets `limits`; `loss` [N, K] is of one-decision changes."""
    space = limits.space
    found = []
    for bits in (*FEWER_BITS, None):
        try:
            architecture = additive_architecture(space, loss, limits.among(in_same_bits(space, bits)))
        except InfeasibleBudgetError:
            continue
        choice = space.choice_of(architecture)
        assert choice is not None  # its options are the space's
        found.append(choice)
    return found
