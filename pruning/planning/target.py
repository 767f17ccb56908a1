"""Sparsity, as users ask for it, turned into a limit on parameters: the one place that converts.

Inside the project everything is a retention or an integer count; sparsity exists at the API and CLI edge only.
"""

import math
from enum import StrEnum

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.errors import InfeasibleTargetError, InputError
from pruning.planning.limits import Limits, WidthSteps, parameter_limits


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
    # 1e-9 of slack: 0.3 of 10 parameters is 3, although 0.3 * 10 is a little more in binary.
    return anatomy.ffn_parameters - math.ceil(check_sparsity(sparsity) * total - 1e-9 * total)


def limits_for_sparsity(
    anatomy: ModelAnatomy, steps: WidthSteps, sparsity: float, scope: Scope, *, compensates: bool = False
) -> Limits:
    """The limit that removes at least `sparsity` of `scope`; with `compensates`, added biases count as kept.

    Raises:
        InputError: `sparsity` is not in [0, 1).
        InfeasibleTargetError: even with every FFN at its narrowest in `steps` too much is kept.
    """
    most = parameters_to_keep(anatomy, sparsity, scope)
    limits = parameter_limits(anatomy, steps, most, compensates=compensates)
    least = limits.limits[0].least
    if least > most:
        removable = (anatomy.ffn_parameters - least) / scope_parameters(anatomy, scope)
        # Rounded down, so that asking for it works.
        nearest = max(math.floor(removable * 1e6) / 1e6, 0.0)
        raise InfeasibleTargetError(
            f"sparsity of scope '{scope}' cannot exceed {nearest} when each FFN keeps at least "
            f"{max(steps.narrowest)} channels",
            values=repr(sparsity),
            remedy=f"Ask for at most {nearest}, or lower round_to",
            nearest=nearest,
        )
    return limits


def ffn_parameter_budget(anatomy: ModelAnatomy, sparsity: float, scope: Scope, *, round_to: int) -> int:
    """FFN parameters that may be kept so that at least `sparsity` of `scope` is removed, in steps of `round_to`.

    Raises as `limits_for_sparsity`.
    """
    steps = WidthSteps.build(anatomy, round_to=round_to)
    return limits_for_sparsity(anatomy, steps, sparsity, scope).limits[0].most


def achieved_sparsity(
    anatomy: ModelAnatomy, widths: list[int], *, added_parameters: int = 0, removed_attention: int = 0
) -> dict[Scope, float]:
    """Sparsity per scope of a model whose FFNs have `widths` [L].

    Args:
        added_parameters: what its FFNs have that the dense ones lack.
        removed_attention: parameters that go with KV groups; scope `ffn` does not count them.
    """
    kept = added_parameters + sum(w * x.ffn_parameters_per_channel for w, x in zip(widths, anatomy.layers, strict=True))
    removed = anatomy.ffn_parameters - kept
    return {
        scope: (removed + (0 if scope is Scope.FFN else removed_attention)) / scope_parameters(anatomy, scope)
        for scope in Scope
    }
