"""Sparsity, as users ask for it: a fraction of the parameters that a scope counts. The one place that converts.

Inside the project everything is a retention or an integer count; sparsity exists at the API and CLI edge only.
"""

import math
from enum import StrEnum

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InputError


class Scope(StrEnum):
    """Which parameters a sparsity is a fraction of."""

    FFN = "ffn"
    DECODER = "decoder"
    MODEL = "model"


def scope_parameters(anatomy: ModelAnatomy, scope: Scope) -> int:
    """Parameters of the dense model that `scope` counts."""
    match scope:
        case Scope.FFN:
            return anatomy.ffn_parameters
        case Scope.DECODER:
            return anatomy.decoder_parameters
        case Scope.MODEL:
            return anatomy.total_parameters


def check_sparsity(sparsity: float) -> float:
    """Return `sparsity` as a float; raises InputError unless it is a finite number in [0, 1)."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0.0 <= sparsity < 1.0:
        raise InputError(
            "sparsity must be a number in [0, 1)",
            values=repr(sparsity),
            remedy="Ask for 0.4 to remove 40% of the scope",
        )
    return float(sparsity)


def parameters_to_keep(anatomy: ModelAnatomy, sparsity: float, scope: Scope) -> int:
    """FFN parameters that may be kept so that at least `sparsity` of `scope` is removed; negative where all are needed.

    Raises:
        InputError: `sparsity` is not in [0, 1).
    """
    total = scope_parameters(anatomy, scope)
    return anatomy.ffn_parameters - num_to_remove(total, sparsity)


def decoder_parameters_to_keep(anatomy: ModelAnatomy, sparsity: float, scope: Scope) -> int:
    """As `parameters_to_keep`, of the decoder's layers, where anything in them may go.

    Raises:
        InputError: `sparsity` is not in [0, 1), or of FFN parameters: others that go would count nowhere.
    """
    if scope is Scope.FFN:
        raise InputError(
            "a sparsity of FFN parameters is for the space that changes FFN widths alone",
            values=f"scope '{scope}'",
            remedy=f"Ask for a sparsity of scope '{Scope.DECODER}' or '{Scope.MODEL}'",
        )
    total = scope_parameters(anatomy, scope)
    return anatomy.decoder_parameters - num_to_remove(total, sparsity)


def reachable_sparsity(removable: int, total: int) -> float:
    """The sparsity that removing `removable` of `total` comes to, rounded down: asking for it works."""
    return max(math.floor(removable / total * 1e6) / 1e6, 0.0)


def num_to_remove(total: int, sparsity: float) -> int:
    """How many of `total` at least have to go; raises InputError as `check_sparsity`."""
    # 1e-9 of slack: 0.3 of 10 parameters is 3, although 0.3 * 10 is a little more in binary.
    return math.ceil(check_sparsity(sparsity) * total - 1e-9 * total)
