"""A protocol with its verdicts, and the edges of the lock graph, as they leave the checker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracer.invariants.verdict import Ruling, Verdict
from tracer.protocol.model import Protocol


@dataclass(frozen=True)
class Sighting:
    """The first window of a protocol, from its event.

    stack: symbolised. vma: before and after. addresses: of mm, folio and locks, by name. trail: the
    windows before it, from the flight recorder, packed; note: on the trail. folio: empty where the
    window has none.
    """

    task: Mapping[str, Any] = field(default_factory=dict)
    stack: tuple[str, ...] = ()
    vma: Mapping[str, Any] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)
    trail: bytes = b""
    note: str = ""
    folio: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProtocolVerdict:
    """A protocol, the number of its windows, and its rulings by invariant."""

    protocol: Protocol
    windows: int
    rulings: Mapping[str, Ruling]

    def by_verdict(self, *verdicts: Verdict) -> list[str]:
        """Return the invariants with one of these verdicts."""
        return [
            invariant for invariant, ruling in self.rulings.items() if ruling.verdict in verdicts
        ]


@dataclass(frozen=True)
class LockNesting:
    """An edge of the lock graph: windows in which `taken` was waited for with `held` held.

    modes: windows by mode of `taken`. functions: by function. first: the first such protocol, with
    its stack. cycle: the edge is part of one.
    """

    held: str
    taken: str
    modes: Mapping[str, int]
    functions: Mapping[str, int]
    first: Protocol
    stack: tuple[str, ...]
    cycle: bool
