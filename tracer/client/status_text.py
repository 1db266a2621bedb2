"""The status of a daemon on one screen of a terminal."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from rich.text import Text

from tracer.client.answers import Audit, Costs, Finding, Seen, Status
from tracer.client.health import Health
from tracer.results.standing import STALE_SECONDS, entries, lost_text
from tracer.screen import STANDING_STYLES
from tracer.time_text import precise, two_units

VERDICTS = {"violated": "bold red", "suspect": "yellow"}
_MOST_FINDINGS = 5
_MEBIBYTE = 1 << 20


def as_lines(seen: Seen, health: Health, url: str) -> Iterator[Text]:
    """Yield the lines of the status. url: of the daemon."""
    status = seen.status
    stands = status.standing
    head = Text(f"{stands.colour.upper()}: {stands.title}", STANDING_STYLES[stands.colour])
    yield head
    yield Text(f"rmapd {status.rmapd} on {status.host}, {status.kernel}, at {url}")
    yield Text(
        f"gate {'open' if status.gate_open else 'closed'},"
        f" {two_units(status.duration_seconds)}, fidelity {status.fidelity}"
        + (f"; data {two_units(seen.age_seconds)} old" if is_stale(seen) else "")
    )
    yield from (Text(f"  {reason.text}") for reason in stands.reasons)
    yield Text()
    yield from _findings(status)
    for name, text in _rows(status):
        yield Text(f"{name:9} {text}")
    if health.exit_code:
        yield Text()
        yield Text(f"exit {health.exit_code}: {health.reason}")


def is_stale(seen: Seen) -> bool:
    """Return whether the answer is older than a daemon that works lets it become."""
    return seen.status.gate_open and seen.age_seconds > STALE_SECONDS


def _findings(status: Status) -> Iterator[Text]:
    found = status.worst_first
    for one in found[:_MOST_FINDINGS]:
        yield finding_line(one, status.taken)
    left = len(found) - _MOST_FINDINGS
    if left > 0:
        yield Text(f"… and {left:,} more: rmapd events")
    if beyond := sum(status.beyond.values()):
        yield Text(f"… and {beyond:,} findings without evidence: too many distinct ones")
    if found:
        yield Text()


def finding_line(one: Finding, now: datetime.datetime) -> Text:
    """Return a finding in one line: verdict, id, count, function, summary, when it was last met."""
    ago = precise(max(0.0, (now - one.last_seen).total_seconds()))
    return Text.assemble(
        (f"{one.verdict.upper():8}", VERDICTS[one.verdict]),
        f" {one.id} ×{one.count:,}, {ago} ago: {one.function}(): {one.summary}",
    )


def _rows(status: Status) -> Iterator[tuple[str, str]]:
    counts = ((verdict, status.checks(verdict)) for verdict in ("violated", "suspect"))
    yield (
        "checks",
        f"{status.checks('holds'):,} hold, "
        + ", ".join(f"{count:,} {verdict}" for verdict, count in counts)
        + f", {status.checks('unverifiable'):,} unverifiable",
    )
    yield "coverage", f"{status.standing.coverage}{_uncovered(status)}"
    yield "entries", entries_text(status)
    yield "audit", audit_text(status.audit)
    yield "lost", lost_text(status.lost)
    yield "cost", cost_text(status.overhead)
    if status.store and status.store.reason:
        yield "store", f"{status.store.path} cannot be written: {status.store.reason}"


def _uncovered(status: Status) -> str:
    names = [name for name, one in status.invariants.items() if one.coverage == "none"]
    return f"; not {' '.join(names)}" if names else ""


def entries_text(status: Status) -> str:
    """Return how many migration entries are outstanding, and the age of the oldest."""
    migration = status.migration
    if not migration.outstanding:
        return f"none outstanding of {entries(migration.entries_recorded)}"
    return (
        f"{entries(migration.outstanding)} outstanding, the oldest for"
        f" {precise(migration.oldest_entry_seconds)} (limit {migration.age_limit_seconds:g} s)"
    )


def audit_text(audit: Audit) -> str:
    """Return how far the state audit has come."""
    if not audit.ready:
        return f"none: {audit.reason}"
    return (
        f"pass {audit.passes + 1:,}, {audit.mms:,} looks at {audit.known_mms:,} address spaces,"
        f" the oldest look {precise(audit.oldest_look_seconds)} ago;"
        f" open doubts: {audit.open_doubts:,}"
    )


def cost_text(cost: Costs) -> str:
    """Return the shares of a CPU that the programs and the daemon take, and what else it costs."""
    memory = f"{cost.rss_bytes / _MEBIBYTE:,.0f} MiB"
    if cost.longest_tick_gap_seconds:
        memory += f"; ticks {cost.longest_tick_gap_seconds:.1f} s apart at most"
    if cost.probe_share is None or cost.user_share is None:
        return f"not known yet; {memory}"
    return (
        f"programs {cost.probe_share:.2%}, rmapd {cost.user_share:.2%} of one CPU of {cost.cpus};"
        f" {memory}"
    )
