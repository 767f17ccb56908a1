"""What a request is told that cannot be met: what each space can do of it, and what a device or a method cannot."""

from dataclasses import replace

from pruning.devices.device import Device
from pruning.errors import InfeasibleBudgetError, InfeasibleTargetError, InputError, SpaceReach
from pruning.planning.axis_spaces import SpaceName, fine_space
from pruning.planning.demand import Demand
from pruning.planning.limits import LimitKind
from service.schemas import PlanRequest


def in_all_spaces(
    error: InfeasibleTargetError, demand: Demand, request: PlanRequest, device: Device | None
) -> InfeasibleTargetError:
    """`error`, which says what the other spaces can do too: in words in its remedy, and as `spaces`.

    Where the asked space does not fit into the device's memory no larger budget would help, so that is said instead.
    """
    if device is not None and isinstance(error, InfeasibleBudgetError):
        error = _on_device(error, device, request.space)
    spaces = {request.space.value: _reach_of(error)}
    for name in SpaceName:
        # Bits remove no parameters, and what is zeroed is not removed.
        if (
            name is request.space
            or (demand.budget is None and name.has_bits)
            or SpaceName.DENSITY in (name, request.space)
        ):
            continue
        try:
            space = fine_space(demand.anatomy, name, round_to=request.round_to, tp_size=request.tp_size)
            replace(demand, space=space).limits_for()
            spaces[name.value] = SpaceReach(reaches=True)
        except InfeasibleTargetError as other:
            spaces[name.value] = _reach_of(other)
        except InputError:  # nothing to decide there, or the scope counts something else
            continue
    others = ", ".join(f"'{name}' {_said(reach)}" for name, reach in spaces.items() if name != request.space.value)
    remedy = error.remedy + (f"; of the other spaces {others}" if others else "")
    return _said_anew(error, error.rule, remedy, spaces)


def of_method(error: InfeasibleTargetError, method: str) -> InfeasibleTargetError:
    """`error` where other methods may be able to do what `method` cannot."""
    rule = f"method '{method}' cannot remove this much: {error.rule}"
    remedy = f"Leave `method` out, or {error.remedy[:1].lower()}{error.remedy[1:]}"
    return _said_anew(error, rule, remedy, error.spaces)


def _on_device(error: InfeasibleBudgetError, device: Device, space: SpaceName) -> InfeasibleBudgetError:
    """`error`, or the one to give instead where no budget would help: the space needs more than the device has."""
    needed = error.nearest_values.get(LimitKind.MEMORY_BYTES.value, 0)
    if needed <= device.memory_bytes:
        return error
    return InfeasibleBudgetError(
        f"the smallest plan in the space '{space}' needs memory_bytes = {needed}, more than {device.id} has",
        values=f"{device.memory_bytes} bytes",
        remedy="Name a device with more memory, or ask for a smaller batch, prompt or output",
        binding=LimitKind.MEMORY_BYTES.value,
        nearest_values=error.nearest_values,
    )


def _reach_of(error: InfeasibleTargetError) -> SpaceReach:
    if isinstance(error, InfeasibleBudgetError):
        return SpaceReach(
            reaches=False, nearest=error.nearest, binding=error.binding, nearest_values=error.nearest_values
        )
    return SpaceReach(reaches=False, nearest=error.nearest)


def _said(reach: SpaceReach) -> str:
    if reach.reaches:
        return "reaches it"
    if reach.nearest_values is not None:
        # All of them, since more of the binding one alone may not be enough.
        return f"needs {' and '.join(f'{kind} = {value}' for kind, value in reach.nearest_values.items())}"
    return f"reaches {reach.nearest}"


def _said_anew(
    error: InfeasibleTargetError, rule: str, remedy: str, spaces: dict[str, SpaceReach]
) -> InfeasibleTargetError:
    """The same in other words."""
    if isinstance(error, InfeasibleBudgetError):
        return InfeasibleBudgetError(
            rule,
            values=error.values,
            remedy=remedy,
            binding=error.binding,
            nearest_values=error.nearest_values,
            spaces=spaces,
        )
    return InfeasibleTargetError(rule, values=error.values, remedy=remedy, nearest=error.nearest, spaces=spaces)
