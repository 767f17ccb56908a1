"""Options of `lop search` for what is to be fast on a device."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from lop.console.console import warn
from mcts.targets import DEFAULT_LATENCY_SHARES, LatencyTargets
from pruning.errors import InputError
from pruning.planning.workload import Workload

if TYPE_CHECKING:
    from mcts.settings import SearchSettings
    from mcts.targets import SearchTarget

_PANEL = "Latency"

Device = Annotated[
    str | None,
    typer.Option(
        help="Also search for what is fast on this device (`lop device list`), after the sparsities: predictors then "
        "know more of plans for a latency. Not where bits or densities may change.",
        rich_help_panel=_PANEL,
    ),
]
LatencyShares = Annotated[
    list[float] | None,
    typer.Option(
        help="Share of the dense model's latency on the device that may be taken; repeat for several. Default: "
        f"{', '.join(f'{share:g}' for share in DEFAULT_LATENCY_SHARES)}, as far as the space reaches them.",
        rich_help_panel=_PANEL,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, help="Of the request that is timed: prompts at once. [default: 1]", rich_help_panel=_PANEL
    ),
]
PromptTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=2**20,
        help="Of that request: length of a prompt, its image included. [default: 1024]",
        rich_help_panel=_PANEL,
    ),
]
OutputTokens = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=2**20,
        help="Of that request: tokens generated for each prompt. [default: 128]",
        rich_help_panel=_PANEL,
    ),
]


def latency_targets(
    device: str | None, shares: Sequence[float] | None, workload: Mapping[str, int | None]
) -> LatencyTargets | None:
    """What the options ask for; None: nothing. Raises InputError for those of a device that is not named."""
    given = {name: value for name, value in workload.items() if value is not None}
    if device is not None:
        return LatencyTargets(device, tuple(shares) if shares else None, Workload(**given))
    if shares or given:
        named = [*(["latency_share"] if shares else []), *given]
        raise InputError(
            "a latency is one on a device",
            values=", ".join(f"--{name.replace('_', '-')}" for name in named),
            remedy="Name it with --device",
        )
    return None


def tell_what_is_left_out(settings: "SearchSettings", targets: "Sequence[SearchTarget]") -> None:
    """Warn of default shares that the space does not reach."""
    if settings.latency is None or settings.latency.shares is not None:
        return
    reached = [target.latency.share for target in targets if target.latency is not None]
    if left := [f"{share:g}" for share in DEFAULT_LATENCY_SHARES if share not in reached]:
        warn(
            f"nothing in space '{settings.axes}' is as fast as {' or '.join(left)} of the dense model's latency on "
            f"{settings.latency.device}: not searched"
        )
