"""Sparsity, as users ask for it, turned into a parameter budget: the one place that converts.

Inside the project everything is a retention or an integer count; sparsity exists at the API and CLI edge only.
"""

import math
from enum import StrEnum

from pruning.anatomy import ModelAnatomy
from pruning.errors import InfeasibleTargetError, InputError


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


def ffn_parameter_budget(anatomy: ModelAnatomy, sparsity: float, scope: Scope, *, round_to: int) -> int:
    """FFN parameters that may be kept so that at least `sparsity` of `scope` is removed.

    Raises:
        InputError: `sparsity` is not in [0, 1).
        InfeasibleTargetError: even with every FFN at its minimum width (`round_to` channels) too much is kept.
    """
    total = scope_parameters(anatomy, scope)
    # 1e-9 of slack: 0.3 of 10 parameters is 3, although 0.3 * 10 is a little more in binary.
    to_remove = math.ceil(check_sparsity(sparsity) * total - 1e-9 * total)
    floor = sum(min(round_to, x.ffn_width) * x.ffn_parameters_per_channel for x in anatomy.layers)
    if anatomy.ffn_parameters - to_remove < floor:
        nearest = math.floor((anatomy.ffn_parameters - floor) / total * 1e6) / 1e6
        raise InfeasibleTargetError(
            f"sparsity of scope '{scope}' cannot exceed {nearest} when each FFN keeps at least {round_to} channels",
            values=repr(sparsity),
            remedy=f"Ask for at most {nearest}, or lower round_to",
            nearest=nearest,
        )
    return anatomy.ffn_parameters - to_remove


def achieved_sparsity(anatomy: ModelAnatomy, widths: list[int], *, added_parameters: int = 0) -> dict[Scope, float]:
    """Sparsity per scope of a model whose FFNs have `widths` [L] and `added_parameters` that the dense ones lack."""
    kept = added_parameters + sum(w * x.ffn_parameters_per_channel for w, x in zip(widths, anatomy.layers, strict=True))
    removed = anatomy.ffn_parameters - kept
    return {scope: removed / scope_parameters(anatomy, scope) for scope in Scope}
