"""What the view prints: the state of the connection, numbers, and lines that are drawn of them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tracer.client.answers import Status
from tracer.client.status_text import audit_text, cost_text, entries_text
from tracer.client.top.observer import Picture
from tracer.errors import RmapdError
from tracer.results.standing import STALE_SECONDS, lost_text
from tracer.screen import STANDING_STYLES
from tracer.time_text import precise, two_units

LIVE, STALE, GONE, PAUSED = "live", "stale", "gone", "paused"
"""States of what is shown; those but LIVE are drawn across the screen."""
_RESTART_SECONDS = 30.0
"""How long a restart of the daemon is shown."""
_BARS = "▁▂▃▄▅▆▇█"


def state(
    picture: Picture, error: RmapdError | None, now: float, *, paused: bool
) -> tuple[str, str]:
    """Return the state of what is shown, and a sentence about it. now: monotonic seconds.

    error: why the last look gave no picture, or None.
    """
    age = picture.age(now)
    old = f"what you see is {two_units(age)} old"
    if error is not None:
        return GONE, f"GONE: {error.why or error.what}; {old}; asking again"
    if not picture.seen.status.gate_open:
        return GONE, f"ENDING: the gate is closed, nothing is recorded any more; {old}"
    if paused:
        return PAUSED, f"PAUSED: {old}; space goes on"
    if age > STALE_SECONDS:
        return STALE, f"STALE: the checker has read no tables since; {old}"
    if picture.restarted is not None and now - picture.restarted < _RESTART_SECONDS:
        return LIVE, "the daemon was restarted: counts begin anew"
    return LIVE, ""


def sparkline(values: Sequence[float]) -> str:
    """Return a bar for each value. The lowest bar is 0, and the highest the largest value."""
    most = max(values, default=0.0)
    if most <= 0:
        return _BARS[0] * len(values)
    return "".join(
        _BARS[0] if value <= 0 else _BARS[max(1, min(7, round(7 * value / most)))]
        for value in values
    )


def rate(value: float | None) -> str:
    """Return a rate with few digits; None is a dash."""
    if value is None:
        return "–"
    if value >= 10_000_000:
        return f"{value / 1e6:,.0f}M"
    if value >= 100_000:
        return f"{value / 1e3:,.0f}k"
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.2g}"


def share(value: float | None) -> str:
    """Return a share of one CPU in percent; None is a dash."""
    return "–" if value is None else f"{value:.2%}" if value < 0.1 else f"{value:.0%}"


def time_per_second(value: float | None) -> str:
    """Return seconds in each second, as `1.2 ms/s`; None is a dash, and nothing a 0."""
    if value is None:
        return "–"
    return f"{precise(value)}/s" if value > 0 else "0"


def standing(status: Status) -> Text:
    """Return the colour of the standing as a word, and its title."""
    stands = status.standing
    style = STANDING_STYLES[stands.colour]
    return Text.assemble(
        (f" {stands.colour.upper()} ", f"{style} reverse"), " ", (stands.title, style)
    )


def daemon(status: Status) -> Text:
    """Return what daemon this is, and how much it sees: two lines."""
    return Text.assemble(
        (status.host, "bold"),
        f"  {status.kernel}  rmapd {status.rmapd}  up {two_units(status.duration_seconds)}"
        f"  fidelity {status.fidelity}\n",
        f"{status.standing.coverage}; lost: {lost_text(status.lost)}",
    )


def health(status: Status, url: str) -> Table:
    """Return reasons, audit, losses, entries and costs: what is no table."""
    made = Table.grid(padding=(0, 1))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    reasons = [reason.text for reason in status.standing.reasons]
    doubts = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in status.audit.doubts.items())
    rows = [
        *(("why", reason) for reason in reasons or ["no reason against the standing"]),
        ("coverage", status.standing.coverage),
        ("entries", entries_text(status)),
        ("audit", audit_text(status.audit)),
        *([("doubts", doubts)] if doubts else []),
        *([("budget", _budget(status))] if status.audit.ready else []),
        ("oracle", "ready" if status.oracle.ready else f"none: {status.oracle.reason}"),
        ("lost", lost_text(status.lost)),
        ("cost", cost_text(status.overhead)),
        ("store", _store(status)),
        ("address", url),
        ("run", status.run),
    ]
    for name, text in rows:
        made.add_row(name, Text(text))
    return made


def _budget(status: Status) -> str:
    audit = status.audit
    used = audit.cpu_seconds / max(status.duration_seconds, 1e-9)
    spent = precise(audit.cpu_seconds)
    return (
        f"the audit took {spent} of CPU time, {used:.2%} of a CPU; it may take {audit.budget:.2%}"
    )


def _store(status: Status) -> str:
    store = status.store
    if store is None:
        return "none: findings are in the log only"
    return f"{store.path} cannot be written: {store.reason}" if store.reason else store.path
