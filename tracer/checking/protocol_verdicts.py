"""Rules on each distinct protocol once; from then on its windows are counted by a look-up.

No kernel, no clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracer.errors import RmapdError
from tracer.invariants.base import Invariant
from tracer.invariants.lock_order import NO_CYCLE, Edge, LockGraph, nestings
from tracer.invariants.verdict import Finding, Ruling, Tally, Verdict
from tracer.protocol.codec import Encoding
from tracer.protocol.model import Protocol
from tracer.protocol.text import text
from tracer.results.protocols import LockNesting, ProtocolVerdict, Sighting

_FOUND = (Verdict.VIOLATED, Verdict.SUSPECT)


@dataclass
class _KnownProtocol:
    """A protocol with its rulings by invariant.

    cycle: the lock cycle that it closed. nested: the locks that it nests, with the mode.
    """

    protocol: Protocol
    rulings: dict[str, Ruling]
    cycle: tuple[Edge, ...] = ()
    nested: tuple[tuple[Edge, str], ...] = ()


class ProtocolVerdicts:
    """Verdicts on all windows of a run.

    update() takes in the protocol table whenever it is read, add_sighting() the event of each new
    protocol; report() brings a Tally up to date. covered: the invariants that have coverage. wrong:
    keys of protocols that some invariant finds violated or suspect.
    """

    def __init__(
        self, encoding: Encoding, invariants: Mapping[str, Invariant], covered: frozenset[str]
    ) -> None:
        self.checks: Counter[tuple[str, Verdict]] = Counter()
        self.wrong: set[bytes] = (
            set()
        )  # keys of protocols that some invariant finds violated or suspect
        self.unreadable: dict[bytes, str] = {}
        self.windows_unreadable = 0
        self._encoding, self._covered = encoding, covered
        self._momentary = {
            invariant.id for invariant in invariants.values() if not invariant.needs_every_window
        }
        self._judges = {
            invariant.id: invariant.judge for invariant in invariants.values() if invariant.judge
        }
        self._graph = LockGraph()
        self._known: dict[bytes, _KnownProtocol] = {}
        self._keys: dict[Protocol, bytes] = {}
        self._counts: Counter[bytes] = Counter()
        self._sightings: dict[bytes, Sighting] = {}
        self._unreported: Counter[tuple[bytes, str, Verdict]] = Counter()
        self._without_sighting: dict[
            bytes, set[tuple[str, Verdict]]
        ] = {}  # recorded before their sighting came
        self._changed: dict[bytes, int] = {}

    def cover(self, covered: frozenset[str]) -> None:
        """From now on windows count for these invariants."""
        self._covered = covered

    def update(
        self, rows: Mapping[bytes, int], *, lossy: bool = False
    ) -> Mapping[tuple[str, Verdict], int]:
        """Take in the table's counts since the gate opened; return all checks so far.

        The same rows again change nothing. lossy: events were lost lately, so new windows that
        violate something are unverifiable: a window whose return was missed ends in another one.
        Rulings that a single moment proves stay.
        """
        for key, count in rows.items():
            new = count - self._counts[key]
            if new <= 0:
                continue
            self._counts[key] = self._changed[key] = count
            known = self._ruled(key)
            if known is None:
                self.windows_unreadable += new
                continue
            for invariant, ruling in known.rulings.items():
                if invariant not in self._covered:
                    continue
                doubtful = lossy and ruling.verdict in _FOUND and invariant not in self._momentary
                verdict = Verdict.UNVERIFIABLE if doubtful else ruling.verdict
                self.checks[invariant, verdict] += new
                self._unreported[key, invariant, verdict] += new
        return dict(self.checks)

    def changed_counts(self, every: bool = False) -> dict[bytes, int]:
        """Return the counts that have changed since the last call, or (every) all; by key."""
        found, self._changed = dict(self._counts) if every else self._changed, {}
        return found

    def resume(self, counts: Mapping[bytes, int]) -> None:
        """Go on from counts that another checker has ruled on already."""
        for key, count in counts.items():
            self._counts[key] = count
            if self._ruled(key) is None:
                self.windows_unreadable += count

    def _ruled(self, key: bytes) -> _KnownProtocol | None:
        """Return the protocol of this key; None where it cannot be decoded.

        Rule on it if it is new.
        """
        if key in self._known or key in self.unreadable:
            return self._known.get(key)
        try:
            protocol = self._encoding.decode(key)
        except RmapdError as error:
            self.unreadable[key] = str(error)
            return None
        rulings = {
            invariant: ruling
            for invariant, judge in self._judges.items()
            if (ruling := judge(protocol))
        }
        self._keys[protocol] = key
        known = self._known[key] = _KnownProtocol(protocol, rulings)
        self._rule_on_cycles(known)
        if any(ruling.verdict in _FOUND for ruling in known.rulings.values()):
            self.wrong.add(key)
        return known

    def _rule_on_cycles(self, known: _KnownProtocol) -> None:
        """Rule on L2, which depends on all protocols so far.

        The one that closes a cycle violates it.
        """
        cycle = self._graph.add(known.protocol)
        if cycle is None:
            return
        known.cycle, known.nested = cycle, nestings(known.protocol)
        known.rulings[NO_CYCLE.id] = (
            Ruling(Verdict.VIOLATED, f"the lock classes form a cycle: {_named(cycle)}")
            if cycle
            else Ruling(Verdict.HOLDS)
        )

    def rule(self, key: bytes) -> Mapping[str, Ruling]:
        """Return the rulings on this protocol by invariant. Empty if the key cannot be decoded."""
        known = self._ruled(key)
        return known.rulings if known else {}

    def add_sighting(self, key: bytes, sighting: Sighting) -> None:
        """Keep the first sighting of a protocol."""
        self._sightings.setdefault(key, sighting)

    def report(self, tally: Tally, wall: float) -> list[Finding]:
        """Count in the tally what update() took in; return findings with new signatures.

        A finding whose sighting comes later is completed in the tally then.
        """
        self._complete(tally)
        fresh = []
        for (key, invariant, verdict), count in self._unreported.items():
            if verdict not in _FOUND:
                tally.add(invariant, verdict, count)
                continue
            finding = self._finding(key, invariant, verdict)
            if tally.record(finding, wall, count):
                fresh.append(finding)
                if key not in self._sightings:
                    self._without_sighting.setdefault(key, set()).add((invariant, verdict))
        self._unreported.clear()
        return fresh

    def _complete(self, tally: Tally) -> None:
        for key in [key for key in self._without_sighting if key in self._sightings]:
            for invariant, verdict in self._without_sighting.pop(key):
                finding = self._finding(key, invariant, verdict)
                if finding.signature in tally.violations:
                    tally.violations[finding.signature].first = finding

    def _finding(self, key: bytes, invariant: str, verdict: Verdict) -> Finding:
        known, sighting = self._known[key], self._sightings.get(key, Sighting())
        ruling = known.rulings[invariant]
        evidence: dict[str, Any] = {
            "proven": ruling.proven,
            "sighted": key in self._sightings,
            "vma": dict(sighting.vma),
            "addresses": dict(sighting.addresses),
        }
        evidence |= {
            name: value
            for name, value in (("trail_note", sighting.note), ("folio", dict(sighting.folio)))
            if value
        }
        shape = text(known.protocol, ascii=True)
        if invariant == NO_CYCLE.id:
            evidence["edges"] = [self._edge(edge) for edge in known.cycle]
            shape = _named(known.cycle)
        task, protocol = dict(sighting.task), text(known.protocol)
        return Finding(
            invariant,
            verdict,
            known.protocol.window,
            shape,
            ruling.reason,
            task,
            sighting.stack,
            evidence,
            protocol,
            sighting.trail,
        )

    def _edge(self, edge: Edge) -> dict[str, Any]:
        """Return one edge of a cycle, with the first protocol and stack of it."""
        protocol = self._graph.first[edge]
        sighting = self._sightings.get(self._keys[protocol], Sighting())
        return {
            "held": edge[0],
            "taken": edge[1],
            "protocol": text(protocol),
            "stack": list(sighting.stack),
        }

    def lock_graph(self) -> list[LockNesting]:
        """Return the edges of the lock graph, oldest first.

        A window counts once per edge and mode.
        """
        modes, functions, closed = (
            defaultdict[Edge, Counter[str]](Counter),
            defaultdict[Edge, Counter[str]](Counter),
            set[Edge](),
        )
        for key, known in self._known.items():
            closed |= {*known.cycle}
            for edge, mode in known.nested:
                modes[edge][mode] += self._counts[key]
            for edge in {edge for edge, _ in known.nested}:
                functions[edge][known.protocol.window] += self._counts[key]
        found = []
        for edge, first in self._graph.first.items():
            stack = self._sightings.get(self._keys[first], Sighting()).stack
            found.append(
                LockNesting(*edge, modes[edge], functions[edge], first, stack, edge in closed)
            )
        return found

    @property
    def windows(self) -> int:
        """All windows counted so far."""
        return self._counts.total()

    def protocols(self) -> list[ProtocolVerdict]:
        """Return every protocol that was counted, with its windows and rulings."""
        return [
            ProtocolVerdict(known.protocol, self._counts[key], dict(known.rulings))
            for key, known in self._known.items()
            if self._counts[key]
        ]


def _named(cycle: tuple[Edge, ...]) -> str:
    return " -> ".join([*(held for held, _ in cycle), cycle[0][0]])
