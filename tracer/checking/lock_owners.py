"""L3 by audit: follow the locks that the state audit found owned for write until they are decided.

Nearly all are given back within microseconds. Each is looked at again, by value, until it is given
back (the check holds), until it is proven that its owner kept it, or until it is too old to be
believed (tracer.checking.lock_proofs). Old ones are watched at system calls, for half a second, and
for a twentieth of the time at most, because that makes every system call of the machine slower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tracer.checking.lock_proofs import (
    ENTERED,
    LOOK_GAP_NS,
    LOOKS,
    Proof,
    by_value,
    suspicion,
)
from tracer.checking.verdicts import Verdicts
from tracer.invariants.lock_balance import BALANCE
from tracer.invariants.verdict import Finding, Verdict
from tracer.memory.lock_owners import Entered, OwnerLook, Watched
from tracer.memory.vma_trees import OwnedLock
from tracer.printable import printable

WATCH_NS = 500_000_000
WATCH_SHARE = 0.05
"""The share of time for which system calls may be hooked."""
MOST_HOLDS = 64
_WATCH_STEP_NS = 50_000_000
_LONGEST_GAP_NS = 1_000_000_000
_RETRY_NS = 10 * 10**9  # after the kernel has refused to hook system calls

_NAMES = {
    "AUDIT_MMAP_LOCK": "mmap_lock",
    "AUDIT_I_MMAP_RWSEM": "i_mmap_rwsem",
    "AUDIT_ANON_VMA_RWSEM": "anon_vma rwsem",
}


class Reader(Protocol):
    """What is needed of tracer.memory.lock_owners.OwnerReader."""

    def look(self, lock: int, kind: str, task: int) -> OwnerLook | None:
        """Look at a lock and its supposed owner."""

    def watch(self, locks: Iterable[Watched]) -> list[Watched]:
        """Choose what system calls are watched for."""

    def entered(self) -> dict[tuple[int, int], Entered]:
        """Return what the watched tasks did."""

    def forget(self) -> None:
        """Watch nothing any more."""


@dataclass
class _Hold:
    """A lock and its owner, from the first look on.

    base: the first look. proof: why it is kept, seen in this many looks in a row. silent: it was
    watched and entered no system call.
    """

    found: OwnedLock
    first_ns: int
    due_ns: int
    base: OwnerLook | None = None
    last: OwnerLook | None = None
    looks: int = 0
    proof: Proof | None = None
    proofs: int = 0
    silent: bool = False
    suspected: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """The lock and the task."""
        return self.found.lock, self.found.owner


class LockOwners:
    """Decides what becomes of the locks that the audit found owned for write.

    Call note() after each pass or look of the audit, and work() when due_ns() has come. Each lock
    that is followed is one check of L3 when it is decided: given back, it holds. Where the lock or
    its mm is freed meanwhile, or the run ends, there was no check. A suspect is followed further,
    and may become a violation, which is a check of its own.

    hook(on) attaches or detaches the program at system calls, and returns why the kernel refuses.
    describe(vma, mm) returns a VMA as it is now, for evidence. clock: CLOCK_MONOTONIC in
    nanoseconds.
    """

    def __init__(
        self,
        reader: Reader,
        hook: Callable[[bool], str],
        verdicts: Verdicts,
        describe: Callable[[int, int], Mapping[str, Any]],
        clock: Callable[[], int],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.refused = ""
        self._reader, self._hook, self._verdicts = reader, hook, verdicts
        self._describe, self._clock = describe, clock
        self._holds: dict[tuple[int, int], _Hold] = {}
        self._watched: dict[tuple[int, int], OwnerLook] = {}
        self._watching = False
        self._watch_began_ns = self._watch_due_ns = self._watch_allowed_ns = 0

    def note(self, rows: Iterable[OwnedLock]) -> None:
        """Follow the locks that are not followed yet, as many as there is room for."""
        now_ns = self._clock()
        for row in rows:
            key = row.lock, row.owner
            if key in self._holds:
                continue
            if len(self._holds) >= MOST_HOLDS:
                self.counts["not followed"] += 1
                continue
            self.counts["followed"] += 1
            self._holds[key] = _Hold(row, now_ns, now_ns)

    @property
    def followed(self) -> frozenset[tuple[int, int]]:
        """The locks that are followed now, each with the task that owns it."""
        return frozenset(self._holds)

    def due_ns(self) -> int | None:
        """Return when work() has something to do; None: until note() there is nothing."""
        due = [hold.due_ns for hold in self._holds.values()]
        if self._watching:
            due.append(self._watch_due_ns)
        return min(due, default=None)

    def work(self) -> None:
        """Look at what is due, and begin or end to watch system calls."""
        if self._watching:
            self._read_watched()
        now = self._clock()
        for hold in [hold for hold in self._holds.values() if hold.due_ns <= now]:
            self._look(hold)
        if not self._watching:
            self._begin_watch()

    def settle(self, sleep: Callable[[float], None], seconds: float = 1.0) -> None:
        """Work until every lock is decided, for so long at most; sleep() waits until work is due.

        A proof takes a tenth of a second, a watch half of one.
        """
        end = self._clock() + int(seconds * 1e9)
        while (due := self.due_ns()) is not None and self._clock() < end:
            sleep(max(0, due - self._clock()) / 1e9)
            self.work()

    def close(self) -> None:
        """Detach, and look at each lock once more."""
        if self._watching:
            self._read_watched()
        for hold in list(self._holds.values()):
            self._look(hold)
        if self._watching:
            self._end_watch()
        self._holds.clear()

    # by value
    def _look(self, hold: _Hold) -> None:
        found, now = hold.found, self._clock()
        self.counts["looks"] += 1
        look = self._reader.look(found.lock, found.kind, found.owner)
        base = hold.base
        if look is None or not look.identity or (base and look.identity != base.identity):
            self._drop(hold)
            return
        if not look.owned:
            self._given_back(hold)
            return
        if base is None:
            hold.base = base = look
        elif look.seq != base.seq:  # it gave the lock back, and has taken it again
            self._verdicts.add(BALANCE.id, Verdict.HOLDS)
            self.counts["given back"] += 1
            self._restart(hold, look, now)
            base = look
        hold.looks += 1
        if now >= hold.due_ns:  # not a look that is made early because the run ends
            self._prove(hold, base, look)
        hold.last = look
        age = now - hold.first_ns
        if hold.proofs >= LOOKS and hold.proof:
            self._record(hold, Verdict.VIOLATED, hold.proof, look)
            self._drop(hold)
            return
        watched = hold.silent or not look.enters_system_calls or self.refused
        if watched and not hold.suspected and (doubt := suspicion(look, age)):
            hold.suspected = True
            self._record(hold, Verdict.SUSPECT, doubt, look)
        settling = hold.looks < LOOKS or hold.proofs
        gap = LOOK_GAP_NS if settling else min(max(LOOK_GAP_NS, age // 8), _LONGEST_GAP_NS)
        hold.due_ns = now + gap

    @staticmethod
    def _restart(hold: _Hold, look: OwnerLook, now: int) -> None:
        hold.base, hold.last, hold.first_ns = look, None, now
        hold.looks = hold.proofs = 0
        hold.proof, hold.silent, hold.suspected = None, False, False

    @staticmethod
    def _prove(hold: _Hold, base: OwnerLook, look: OwnerLook) -> None:
        proof = by_value(base, look)
        hold.proofs = hold.proofs + 1 if proof and proof == hold.proof else int(proof is not None)
        hold.proof = proof

    def _given_back(self, hold: _Hold) -> None:
        did = self._reader.entered().get(hold.key) if hold.key in self._watched else None
        if did and did.kept:  # it has given it back since
            self._record_entered(hold, did)
            return
        self.counts["given back"] += 1
        if not hold.suspected:
            self._verdicts.add(BALANCE.id, Verdict.HOLDS)
        self._drop(hold)

    def _drop(self, hold: _Hold) -> None:
        self._holds.pop(hold.key, None)
        self._watched.pop(hold.key, None)

    # at system calls
    def _begin_watch(self) -> None:
        """Watch the candidates, if the budget allows it."""
        now = self._clock()
        looks = {
            hold.key: look
            for hold in self._holds.values()
            if hold.looks >= LOOKS and (look := hold.last) and look.enters_system_calls
        }
        if not looks or now < self._watch_allowed_ns:
            return
        taken = self._reader.watch(
            Watched(lock, self._holds[lock, task].found.kind, task, look.identity, look.start_ns)
            for (lock, task), look in looks.items()
        )
        self.refused = self._hook(True)
        if self.refused:
            self._reader.forget()
            self._watch_allowed_ns = now + _RETRY_NS
            return
        self.counts["watches"] += 1
        self.counts["candidates"] += len(taken)
        self._watched = {(one.lock, one.task): looks[one.lock, one.task] for one in taken}
        self._watching = True
        self._watch_began_ns = self._clock()
        self._watch_due_ns = self._watch_began_ns + _WATCH_STEP_NS

    def _read_watched(self) -> None:
        """Read what the watched tasks did; end the watch when all have done it, or it is over."""
        now, entered = self._clock(), self._reader.entered()
        for key in list(self._watched):
            did = entered.get(key)
            if did and did.kept:
                self._record_entered(self._holds[key], did)
            elif did and did.let_go:
                self._given_back(self._holds[key])
        self._watch_due_ns = now + _WATCH_STEP_NS
        if not self._watched or now >= self._watch_began_ns + WATCH_NS:
            for key in self._watched:
                self._holds[key].silent = True
            self._end_watch()

    def _record_entered(self, hold: _Hold, did: Entered) -> None:
        self._record(hold, Verdict.VIOLATED, ENTERED, self._watched[hold.key], did.call)
        self._drop(hold)

    def _end_watch(self) -> None:
        self._hook(False)
        self._reader.forget()
        self._watching, self._watched = False, {}
        now = self._clock()
        spent = now - self._watch_began_ns
        self.counts["watched ns"] += spent
        self._watch_allowed_ns = now + int(spent * (1 / WATCH_SHARE - 1))

    def _record(
        self,
        hold: _Hold,
        verdict: Verdict,
        proof: Proof,
        look: OwnerLook,
        call: int | None = None,
    ) -> None:
        found, name = hold.found, _NAMES[hold.found.kind]
        self.counts[str(verdict)] += 1
        evidence: dict[str, Any] = {
            "lock": f"{name} at {found.lock:#x}",
            "owner": f"{printable(look.comm)}[{look.tid}], {look.doing}",
            "mm": hex(found.mm),
            "age_seconds": round((self._clock() - hold.first_ns) / 1e9, 3),
            "system_call": _call(look) if call is None else call,
        }
        if found.vma:
            evidence["vma"] = self._describe(found.vma, found.mm) or hex(found.vma)
        self._verdicts.record_finding(
            Finding(
                BALANCE.id,
                verdict,
                name.replace(" ", "_"),
                proof.shape,
                f"{printable(look.comm)}[{look.tid}] {proof.words.format(lock=name)}",
                {"pid": look.tid, "tgid": look.tgid, "comm": look.comm},
                evidence=evidence,
            )
        )


def _call(look: OwnerLook) -> int | None:
    """Return the number of its system call; None: it came to the kernel by an interrupt."""
    return look.call if look.alive and look.call < 1 << 32 else None
