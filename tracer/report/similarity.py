"""Protocols as a report has them, how similar two of them are, and the most similar legal one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from tracer.errors import RmapdError
from tracer.invariants.verdict import Verdict, Violation
from tracer.protocol.model import Commit, Locking, Owner, Protocol, Step, TreeStep, Visit
from tracer.protocol.text import parse, parts, text, words
from tracer.report.model import ReportedViolation, RunReport
from tracer.results.snapshot import Snapshot


@dataclass(frozen=True)
class ObservedProtocol:
    """A protocol of a report.

    text: as the report has it. count: its windows. wrong: the ids of the invariants that it
    violates or is suspected to violate.
    """

    text: str
    count: int
    wrong: tuple[str, ...]
    protocol: Protocol

    @property
    def function(self) -> str:
        """The function of the window."""
        return self.protocol.window

    @property
    def identity(self) -> str:
        """The text that is equal for the same behaviour in two runs.

        `rebuilt` is left out: it depends on the hooks that a kernel allows.
        """
        return text(replace(self.protocol, context=replace(self.protocol.context, rebuilt=False)))


def without_lock_states(step: Step) -> Step:
    """Return the step with all of its lock states free, so that only its action counts."""
    match step:
        case TreeStep(tree, enters, owner) if owner is not None:
            return TreeStep(tree, enters, Owner.FREE)
        case Commit(parts):
            return Commit(tuple((part, Owner.FREE) for part, _ in parts))
        case Visit():
            return Visit(Owner.FREE)
    return step


def _actions(protocol: Protocol) -> list[str]:
    """Return the steps other than lock operations, without lock states."""
    return words(
        without_lock_states(step) for step in protocol.flat() if not isinstance(step, Locking)
    )


def similarity(one: Protocol, other: Protocol) -> float:
    """Return from 0 to 6 how similar two protocols of a function are.

    Half of it is the context, a third the actions, a sixth the steps with all locking.
    """
    pairs = (
        (parts(one)[0], parts(other)[0]),
        (_actions(one), _actions(other)),
        (words(one.flat()), words(other.flat())),
    )
    context, actions, steps = (
        SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in pairs
    )
    return 3 * context + 2 * actions + steps


def most_similar(own: Protocol, others: Sequence[ObservedProtocol]) -> ObservedProtocol | None:
    """Return the most similar of `others`; among equals the one with most windows."""
    return max(
        others, key=lambda other: (similarity(own, other.protocol), other.count), default=None
    )


def legal_counterpart(
    v: ReportedViolation, report: RunReport
) -> tuple[ObservedProtocol, ObservedProtocol] | None:
    """Return the violation's protocol and the most similar legal one of its function in that run.

    None if the run has no legal one, or if this rmapd cannot parse the notation of the report.
    """
    if not v.protocol:
        return None
    legal = [
        one
        for one in report.protocols
        if one.function == v.function and not one.violates and not one.suspect
    ]
    try:
        return _with_most_similar(
            ObservedProtocol(v.protocol, v.count, (v.invariant,), parse(v.protocol)),
            [ObservedProtocol(one.line, one.count, (), parse(one.line)) for one in legal],
        )
    except RmapdError:
        return None


def legal_counterpart_now(
    v: Violation, s: Snapshot
) -> tuple[ObservedProtocol, ObservedProtocol] | None:
    """Return the same of a violation of a daemon that runs: its protocol and a legal one."""
    first = v.first
    if not first.protocol:
        return None
    legal = [
        ObservedProtocol(text(one.protocol), one.windows, (), one.protocol)
        for one in s.protocols
        if one.protocol.window == first.function
        and not one.by_verdict(Verdict.VIOLATED)
        and not one.by_verdict(Verdict.SUSPECT)
    ]
    try:
        seen = ObservedProtocol(first.protocol, v.count, (first.invariant,), parse(first.protocol))
    except RmapdError:  # of a finding whose text is not a protocol
        return None
    return _with_most_similar(seen, legal)


def _with_most_similar(
    seen: ObservedProtocol, legal: Sequence[ObservedProtocol]
) -> tuple[ObservedProtocol, ObservedProtocol] | None:
    found = most_similar(seen.protocol, legal)
    return (seen, found) if found else None
