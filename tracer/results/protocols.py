"""A protocol with its verdicts, and the edges of the lock graph, as they leave the checker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracer.invariants.verdict import Ruling, Verdict
from tracer.protocol.model import Protocol


@dataclass(frozen=True)
class Sighting:
    """A protocol's first window, as its event tells: task, symbolised stack, the VMA before and after, addresses by name.
    trail: the windows before it, from the flight recorder, and a note on it; folio: what it is, where the window has one."""

    task: Mapping[str, Any] = field(default_factory=dict)
    stack: tuple[str, ...] = ()
    vma: Mapping[str, Any] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)
    trail: tuple[Mapping[str, Any], ...] = ()
    note: str = ""
    folio: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProtocolVerdict:
    """A protocol, how many windows were so, and its rulings by invariant."""

    protocol: Protocol
    windows: int
    rulings: Mapping[str, Ruling]

    def by_verdict(self, *verdicts: Verdict) -> list[str]:
        return [
            invariant for invariant, ruling in self.rulings.items() if ruling.verdict in verdicts
        ]


@dataclass(frozen=True)
class LockNesting:
    """An edge of the lock graph: windows in which `taken` was waited for with `held` held, by mode of `taken` and by function; the first
    protocol that did so, and its stack."""

    held: str
    taken: str
    modes: Mapping[str, int]
    functions: Mapping[str, int]
    first: Protocol
    stack: tuple[str, ...]
    cycle: bool
