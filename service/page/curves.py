"""Curves over a logarithmic axis: quality of methods over what is removed, and a search's best over its evaluations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 76.0, 14.0, 12.0, 40.0
_FLOOR = 1e-9
"""A divergence of nothing has no logarithm; this is far below anything that was ever measured."""


@dataclass(frozen=True, slots=True)
class Line:
    """A named series of (x, y), or (x, y, least, most) where an interval is known."""

    name: str
    points: tuple[tuple[float, float, float, float], ...]

    @classmethod
    def of(cls, name: str, points: Sequence[tuple[float, float]]) -> "Line":
        """Without intervals."""
        return cls(name, tuple((x, y, y, y) for x, y in points))


@dataclass(frozen=True, slots=True)
class DrawnLine:
    """A line in the picture's units; `kind` is its number, for the style sheet."""

    name: str
    kind: int
    path: str
    band: str
    marks: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """One point with its interval."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of lines, with the ticks of both axes."""

    lines: tuple[DrawnLine, ...]
    x_ticks: tuple[tuple[str, float], ...]
    y_ticks: tuple[tuple[str, float], ...]
    x_label: str
    y_label: str
    mark: Mark | None
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
    marked: tuple[float, float, float, float] | None = None,
) -> Chart | None:
    """The picture; None without any point. x is linear, in percent if it is a share; y is logarithmic."""
    points = [point for line in lines for point in line.points] + ([marked] if marked else [])
    if not points:
        return None
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    if x_high - x_low < 1e-12:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    low = math.log10(max(_FLOOR, min(p[2] for p in points)))
    high = math.log10(max(_FLOOR, max(p[3] for p in points)))
    low, high = (low - 0.1, high + 0.1) if high - low > 0.2 else (low - 0.5, high + 0.5)

    def place_x(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT), 1)

    def place_y(y: float) -> float:
        at = (math.log10(max(y, _FLOOR)) - low) / (high - low)
        return round(HEIGHT - _BOTTOM - min(1.0, max(0.0, at)) * (HEIGHT - _TOP - _BOTTOM), 1)

    drawn = []
    for kind, line in enumerate(lines):
        spots = [(place_x(x), place_y(y)) for x, y, _, _ in line.points]
        upper = [f"{place_x(x)},{place_y(most)}" for x, _, _, most in line.points]
        lower = [f"{place_x(x)},{place_y(least)}" for x, _, least, _ in reversed(line.points)]
        has_band = any(least < most for _, _, least, most in line.points)
        path = " ".join(f"{x},{y}" for x, y in spots)
        drawn.append(DrawnLine(line.name, kind, path, " ".join(upper + lower) if has_band else "", tuple(spots)))
    mark = None
    if marked is not None:
        mark = Mark(place_x(marked[0]), place_y(marked[1]), place_y(marked[2]), place_y(marked[3]))
    form = "{:.0%}" if percent else "{:,.0f}"
    return Chart(
        tuple(drawn),
        x_ticks=tuple((form.format(x), place_x(x)) for x in _even(x_low, x_high)),
        y_ticks=tuple((f"{y:g}", place_y(y)) for y in _decades(low, high)),
        x_label=x_label,
        y_label=y_label,
        mark=mark,
    )


def _even(low: float, high: float) -> list[float]:
    """At most seven round numbers from `low` to `high`."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten between the logarithms `low` and `high`, and 2 and 5 times those where they are few."""
    factors = (1.0,) if high - low > 3 else (1.0, 3.0) if high - low > 1.5 else (1.0, 2.0, 5.0)
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [y for y in found if low <= math.log10(y) <= high]
