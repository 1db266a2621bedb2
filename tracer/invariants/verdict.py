"""Verdicts, and what a check that did not hold leaves behind. A violation is data, never an exception."""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Verdict(enum.StrEnum):
    """Exactly one of four, for every check."""

    HOLDS = "holds"
    VIOLATED = "violated"
    SUSPECT = "suspect"
    UNVERIFIABLE = "unverifiable"


@dataclass(frozen=True)
class Ruling:
    """A monitor's judgement of one protocol. The reason is the same for every window of that protocol: no address, no pid.
    proven: by what was read from the lock or the VMA itself, so that lost events cannot change it."""

    verdict: Verdict
    reason: str = ""
    proven: bool = False


@dataclass(frozen=True)
class Finding:
    """One check that ended in violated or suspect, with what is known about it."""

    invariant: str
    verdict: Verdict
    function: str
    shape: str
    summary: str
    task: dict[str, Any] = field(default_factory=dict)
    stack: tuple[str, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)
    protocol: str = ""
    trail: tuple[Mapping[str, Any], ...] = ()

    @property
    def signature(self) -> str:
        """The same defect met again has the same signature: no pid, no address in it."""
        return f"{self.invariant} {self.verdict} {self.function} {self.shape}"

    @property
    def id(self) -> str:
        return f"{self.invariant}-{hashlib.sha256(self.signature.encode()).hexdigest()[:10]}"


@dataclass
class Violation:
    """All findings of one signature; the first one's evidence is kept, and what the machine was then."""

    first: Finding
    first_seen: float
    last_seen: float
    count: int = 1
    machine: Mapping[str, Any] = field(default_factory=dict)


class Tally:
    """Checks per invariant and verdict, and findings folded by signature, of which at most most_signatures are kept.

    machine: the state of the machine, for a violation that is new. rest: findings beyond the bound, counted without evidence.
    """

    def __init__(
        self, machine: Callable[[], Mapping[str, Any]] = dict, most_signatures: int = 1000
    ) -> None:
        self.checks: Counter[tuple[str, Verdict]] = Counter()
        self.violations: dict[str, Violation] = {}
        self.rest: Counter[tuple[str, Verdict]] = Counter()
        self._machine, self._most = machine, most_signatures

    def add(self, invariant: str, verdict: Verdict, count: int = 1) -> None:
        self.checks[invariant, verdict] += count

    def record(self, finding: Finding, wall: float, count: int = 1) -> bool:
        """Count the check and keep the finding; True where its signature is new."""
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
        return any(count for (_, found), count in self.checks.items() if found is verdict)
