"""Figures as people read them."""

from datetime import UTC, datetime


def in_bytes(count: float) -> str:
    """1.5 GiB, with the exact number nowhere lost: pages show it beside."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


def in_thousands(count: float) -> str:
    """1,234,567."""
    return f"{count:,}"


def in_percent(share: float) -> str:
    """42.0%."""
    return f"{share:.1%}"


def in_operations(count: float) -> str:
    """1.5 TFLOP."""
    size, unit = float(count), ""
    for larger in ("k", "M", "G", "T", "P"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}FLOP"


def in_milliseconds(milliseconds: float) -> str:
    """12.3 ms."""
    return f"{milliseconds:,.0f} ms" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def divergence(kl: float) -> str:
    """Nats, with three figures that count."""
    return f"{kl:.3g}"


def moment(at: datetime) -> str:
    """2026-01-31 12:00:00 UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """1 h 2 min, 3 min 4 s, or 5 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
