"""The protocol of a violation beside the nearest one that broke nothing, for a report."""

from __future__ import annotations

from tracer.errors import RmapdError
from tracer.protocol.text import parse
from tracer.report.alignment import nearest
from tracer.report.diff import Seen
from tracer.report.model import Report, ReportedViolation


def pair(v: ReportedViolation, report: Report) -> tuple[Seen, Seen] | None:
    """What was seen, and the nearest legal protocol of the same function in that run. None where there is none, or where a report of
    another rmapd has a notation that this one does not know."""
    if not v.protocol:
        return None
    legal = [
        one
        for one in report.protocols
        if one.function == v.function and not one.violates and not one.suspect
    ]
    try:
        seen = Seen(v.protocol, v.count, (v.invariant,), parse(v.protocol))
        near = nearest(
            seen.protocol, [Seen(one.said, one.count, (), parse(one.said)) for one in legal]
        )
    except RmapdError:
        return None
    return (seen, near) if near else None
