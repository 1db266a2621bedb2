"""Durations and moments as text: the one place that chooses units and digits."""

from __future__ import annotations

import datetime

_LARGE = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
_SMALL = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
_SECONDS_UP_TO = 90.0
"""two_units() prints seconds alone below this."""


def short(seconds: float) -> str:
    """Format with two digits and one unit, up to seconds: for the labels of a drawing."""
    for unit, size in _SMALL:
        if seconds >= size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 9.5 else f"{value:.2g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def precise(seconds: float | None) -> str:
    """Format with three digits and one unit, from nanoseconds to days; None is a dash."""
    if seconds is None:
        return "–"
    for unit, size in _LARGE[:-1]:
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    for unit, size in _SMALL:
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def two_units(seconds: float) -> str:
    """Format in the two largest units, such as `2 h 5 min`; short durations in seconds."""
    if seconds < _SECONDS_UP_TO:
        return f"{seconds:.3g} s"
    larger = next(n for n, (_, size) in enumerate(_LARGE) if seconds >= size)
    (unit, size), (smaller, small) = _LARGE[larger : larger + 2]
    return f"{seconds // size:.0f} {unit} {seconds % size // small:.0f} {smaller}"


def before_last(nanoseconds: int) -> str:
    """Format how long before the last window of a trail a window ended, as `−1.5 ms` or `0`."""
    return f"−{precise(nanoseconds / 1e9)}" if nanoseconds else "0"


def utc(moment: datetime.datetime | str) -> str:
    """Format a moment, or an ISO 8601 time, to the second in UTC."""
    if isinstance(moment, str):
        moment = datetime.datetime.fromisoformat(moment)
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
