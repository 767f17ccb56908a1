"""A sparsity turned into a limit on parameters, and what an architecture achieves of one."""

from functools import lru_cache

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.errors import InfeasibleTargetError
from pruning.planning.axis_spaces import SpaceName, name_of
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.limits import LimitKind, Limits
from pruning.planning.nonzero_weights import nonzero_weight_budget, nonzero_weight_limits, nonzero_weights
from pruning.planning.prices import Price, decoder_bytes, decoder_parameters, ffn_parameters, parameters, weight_bytes
from pruning.planning.scope import (
    Scope,
    decoder_parameters_to_keep,
    parameters_to_keep,
    reachable_sparsity,
    scope_parameters,
)
from pruning.planning.space import Space


def limits_for_sparsity(
    anatomy: ModelAnatomy, space: Space, sparsity: float, scope: Scope, *, compensates: bool = False
) -> Limits:
    """The limit that removes at least `sparsity` of `scope`; with `compensates`, added biases count as kept.

    In a space that changes more than FFN widths, parameters of the decoder's layers are counted; in that of densities,
    weights that are zeroed, of those of all sub-layers.

    Raises:
        InputError: `sparsity` is not in [0, 1), or of FFN parameters where others go, too, or where weights are zeroed
            of another scope than the decoder.
        InfeasibleTargetError: even the cheapest choice of `space` keeps too much.
    """
    if space.has_density:
        return nonzero_weight_limits(anatomy, space, nonzero_weight_budget(anatomy, space, sparsity, scope))
    if name_of(space) is not SpaceName.FFN:
        return _decoder_limits(anatomy, space, sparsity, scope)
    most = parameters_to_keep(anatomy, sparsity, scope)
    limit = ffn_parameters(anatomy, compensates=compensates).limit(space, most)
    if limit.least > most:
        nearest = reachable_sparsity(anatomy.ffn_parameters - limit.least, scope_parameters(anatomy, scope))
        raise InfeasibleTargetError(
            f"sparsity of scope '{scope}' cannot exceed {nearest} when each FFN keeps at least "
            f"{max(space.units_of(space.bottom))} channels",
            values=repr(sparsity),
            remedy=f"Ask for at most {nearest}, or lower round_to",
            nearest=nearest,
        )
    return Limits(space, (limit,))


def _decoder_limits(anatomy: ModelAnatomy, space: Space, sparsity: float, scope: Scope) -> Limits:
    most, least = decoder_parameters_to_keep(anatomy, sparsity, scope), least_decoder_parameters(anatomy, space)
    if least > most:
        nearest = reachable_sparsity(anatomy.decoder_parameters - least, scope_parameters(anatomy, scope))
        raise InfeasibleTargetError(
            f"sparsity of scope '{scope}' cannot exceed {nearest} in the space '{name_of(space)}'",
            values=repr(sparsity),
            remedy=f"Ask for at most {nearest}, or for the space '{SpaceName.ALL}'",
            nearest=nearest,
        )
    return decoder_parameter_limits(anatomy, space, most)


def ffn_parameter_limits(anatomy: ModelAnatomy, space: Space, most: int) -> Limits:
    """At most `most` FFN parameters. Raises InfeasibleBudgetError if the narrowest FFNs of `space` have more."""
    return Limits(space, (ffn_parameters(anatomy).limit(space, most),))


def ffn_parameter_budget(anatomy: ModelAnatomy, sparsity: float, scope: Scope, *, round_to: int) -> int:
    """FFN parameters that may be kept so that at least `sparsity` of `scope` is removed, in steps of `round_to`.

    Raises as `limits_for_sparsity`.
    """
    space = ffn_widths(anatomy, round_to=round_to)
    return limits_for_sparsity(anatomy, space, sparsity, scope).limits[0].most


def decoder_parameter_limits(anatomy: ModelAnatomy, space: Space, most: int) -> Limits:
    """At most `most` parameters in the decoder's layers, norms included: for spaces that change more than FFN widths.

    As a limit on all parameters, since what is not in a layer always stays. Raises InfeasibleBudgetError if the
    cheapest choice of `space` has more.
    """
    outside = anatomy.total_parameters - anatomy.decoder_parameters
    return Limits(space, (parameters(anatomy).limit(space, most + outside),))


def decoder_byte_limits(anatomy: ModelAnatomy, space: Space, most: int) -> Limits:
    """At most `most` bytes of tensors in the decoder's layers: for spaces that change bits.

    As a limit on all tensors, as `decoder_parameter_limits`. Raises InfeasibleBudgetError as that.
    """
    outside = weight_bytes(anatomy).total - decoder_bytes(anatomy).total
    return Limits(space, (weight_bytes(anatomy).limit(space, most + outside),))


@lru_cache(maxsize=64)
def least_decoder_parameters(anatomy: ModelAnatomy, space: Space) -> int:
    """What the decoder's layers have left when every decision of `space` takes its first option."""
    return decoder_parameters(anatomy).cost(space.architecture(space.bottom))


def usual_scope(name: SpaceName) -> Scope:
    """What sparsities are of in spaces of that name, if nothing is said."""
    return Scope.FFN if name is SpaceName.FFN else Scope.DECODER


def counted(anatomy: ModelAnatomy, name: SpaceName) -> Price:
    """What targets of searches in spaces of that name count: parameters of the FFNs where nothing else may change,
    else of the decoder's layers; their bytes where bits may change, and weights that are not zero where densities
    may."""
    if name.has_density:
        return nonzero_weights(anatomy)
    if name.has_bits:
        return decoder_bytes(anatomy)
    return ffn_parameters(anatomy) if name is SpaceName.FFN else decoder_parameters(anatomy)


def counted_budget(anatomy: ModelAnatomy, limits: Limits) -> int | None:
    """What a sparsity leaves of the parameters that are `counted`, or where bits may change a limit on weight files of
    the decoder's bytes; None under other limits."""
    (limit, *others) = limits.limits
    if limits.space.has_bits:
        if others or limit.kind is not LimitKind.DISK_BYTES:
            return None
        return limit.most - limit.dense + decoder_bytes(anatomy).cost(limits.space.architecture(limits.space.top))
    if limit.kind is LimitKind.NONZERO_WEIGHTS:
        return limit.most
    if others or limit.kind not in (LimitKind.FFN_PARAMETERS, LimitKind.PARAMETERS):
        return None
    of_ffn = limit.kind is LimitKind.FFN_PARAMETERS
    return limit.most if of_ffn else limit.most - (anatomy.total_parameters - anatomy.decoder_parameters)


def achieved_sparsity(
    anatomy: ModelAnatomy, architecture: Architecture, *, compensates: bool = False
) -> dict[Scope, float]:
    """Sparsity per scope of `architecture`; scope `ffn` counts channels, and biases that are added, alone."""
    ffn = anatomy.ffn_parameters - ffn_parameters(anatomy, compensates=compensates).cost(architecture)
    removed = anatomy.total_parameters - parameters(anatomy, compensates=compensates).cost(architecture)
    return {scope: (ffn if scope is Scope.FFN else removed) / scope_parameters(anatomy, scope) for scope in Scope}
