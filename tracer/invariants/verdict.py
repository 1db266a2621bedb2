"""Verdicts on checks, and findings: a violation is data, never an exception."""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


class Verdict(enum.StrEnum):
    """The result of a check: exactly one of four."""

    HOLDS = "holds"
    VIOLATED = "violated"
    SUSPECT = "suspect"
    UNVERIFIABLE = "unverifiable"


@dataclass(frozen=True)
class Ruling:
    """A verdict on one protocol, or on one entry.

    reason: the same for every window of the protocol, so without addresses and pids. proven: by
    what was read from the lock or the VMA itself, so that lost events cannot change it.
    """

    verdict: Verdict
    reason: str = ""
    proven: bool = False


def ruling_of(found: Hashable, wrong: Mapping[Any, str]) -> Ruling:
    """Rule on what a probe has compared. wrong: each result that is a violation -> its reason."""
    reason = wrong.get(found)
    return Ruling(Verdict.VIOLATED, reason, proven=True) if reason else Ruling(Verdict.HOLDS)


@dataclass(frozen=True)
class Finding:
    """One check that ended in violated or suspect, with what is known about it.

    shape: the part of the signature that distinguishes defects of one function. trail: the windows
    that led to it, the oldest first, packed (tracer/packed.py).
    """

    invariant: str
    verdict: Verdict
    function: str
    shape: str
    summary: str
    task: dict[str, Any] = field(default_factory=dict)
    stack: tuple[str, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)
    protocol: str = ""
    trail: bytes = b""

    @cached_property
    def signature(self) -> str:
        """The same for the same defect met again: without pid and address."""
        return f"{self.invariant} {self.verdict} {self.function} {self.shape}"

    @cached_property
    def id(self) -> str:
        """A short name of the signature, for reports and `rmapd explain`."""
        return f"{self.invariant}-{hashlib.sha256(self.signature.encode()).hexdigest()[:10]}"


@dataclass
class Violation:
    """All findings of one signature.

    first: with the evidence. first_seen, last_seen: seconds since the epoch. machine: its state
    when the first was found.
    """

    first: Finding
    first_seen: float
    last_seen: float
    count: int = 1
    machine: Mapping[str, Any] = field(default_factory=dict)


class Tally:
    """Checks by invariant and verdict, and findings folded by signature.

    machine: returns the state of the machine, for a violation that is new. most_signatures: kept.
    rest: findings beyond that bound, counted without evidence.
    """

    def __init__(
        self, machine: Callable[[], Mapping[str, Any]] = dict, most_signatures: int = 1000
    ) -> None:
        self.checks: Counter[tuple[str, Verdict]] = Counter()
        self.violations: dict[str, Violation] = {}
        self.rest: Counter[tuple[str, Verdict]] = Counter()
        self._machine, self._most = machine, most_signatures

    def resume(
        self,
        checks: Mapping[tuple[str, Verdict], int],
        rest: Mapping[tuple[str, Verdict], int],
        violations: Mapping[str, Violation],
    ) -> None:
        """Go on from the tally of another process. violations: by signature."""
        self.checks, self.rest = Counter(checks), Counter(rest)
        self.violations = dict(violations)

    def add(self, invariant: str, verdict: Verdict, count: int = 1) -> None:
        """Count checks."""
        self.checks[invariant, verdict] += count

    def record(self, finding: Finding, wall: float, count: int = 1) -> bool:
        """Count checks that ended in this finding; return whether its signature is new.

        wall: seconds since the epoch.
        """
        self.add(finding.invariant, finding.verdict, count)
        known = self.violations.get(finding.signature)
        if known:
            known.count += count
            known.last_seen = wall
            return False
        if len(self.violations) >= self._most:
            self.rest[finding.invariant, finding.verdict] += count
            return False
        self.violations[finding.signature] = Violation(finding, wall, wall, count, self._machine())
        return True

    def any(self, verdict: Verdict) -> bool:
        """Whether some check had this verdict."""
        return any(count for (_, found), count in self.checks.items() if found is verdict)
