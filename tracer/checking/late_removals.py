"""M4's verdict on entries that the kernel removed after their age limit, each counted once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tracer.checking.missed_runs import MissedRuns
from tracer.checking.stalls import Stalls
from tracer.invariants.migration_entries import LATE, LATE_UNCERTAIN
from tracer.invariants.verdict import Verdict


class LateRemovals:
    """Follows the counters of late removals, and what M4 has judged before them.

    The probes also count the removal of an entry that M4 judged while it was in the ledger. An
    entry has one verdict, so its removal is taken off what the probes count. missed: of the
    programs that record insertions and removals.
    """

    def __init__(self, missed: MissedRuns, stalls: Stalls) -> None:
        self._missed, self._stalls = missed, stalls
        self._seen = {LATE: 0, LATE_UNCERTAIN: 0}
        self._judged: dict[bytes, int] = {}  # entries that M4 has judged, by the key of their row
        self._removed = 0  # of these, removed by the kernel, and not yet taken off its counters
        self._counted_ns = (0, 0)  # when count() was called last, and before that

    @property
    def state(self) -> tuple[dict[str, int], dict[bytes, int], int]:
        """What another LateRemovals needs to go on from here: the arguments of resume()."""
        return dict(self._seen), dict(self._judged), self._removed

    def resume(self, seen: Mapping[str, int], judged: Mapping[bytes, int], removed: int) -> None:
        """Go on from the state of another."""
        self._seen |= seen
        self._judged, self._removed = dict(judged), removed

    def judge(self, key: bytes, entries: int) -> None:
        """Note that M4 has given these entries of a row a verdict."""
        self._judged[key] = self._judged.get(key, 0) + entries

    def settle(self, key: bytes, entries: int) -> int:
        """Note that M1 took these entries out of the ledger.

        Return how many of them M4 has not judged yet.
        """
        known = min(entries, self._judged.get(key, 0))
        self._keep(key, self._judged.get(key, 0) - known)
        return entries - known

    def _keep(self, key: bytes, entries: int) -> None:
        if entries:
            self._judged[key] = entries
        else:
            self._judged.pop(key, None)

    def count(
        self,
        counters: Mapping[str, int],
        left: Mapping[bytes, int],
        age_limit_ns: int,
        now_ns: int,
    ) -> Iterator[tuple[Verdict, int]]:
        """Yield (verdict, count) of what the kernel has removed late since the last call.

        left: entries outstanding by row, read after the counters. A late removal is a suspect. It
        is unverifiable where its age cannot be told from another entry's, where the checker has not
        run for a part of that age, or where a run was missed since the last call but one; the
        probes consider runs that were missed before (params.missed_ns).
        """
        for key, entries in list(self._judged.items()):
            gone = max(0, entries - left.get(key, 0))
            self._removed += gone
            self._keep(key, entries - gone)
        stalled = self._stalls.within(now_ns - age_limit_ns, now_ns)
        doubtful = stalled or self._missed.during(self._counted_ns[1] + 1, now_ns)
        self._counted_ns = now_ns, self._counted_ns[0]
        for name, verdict in (
            (LATE, Verdict.UNVERIFIABLE if doubtful else Verdict.SUSPECT),
            (LATE_UNCERTAIN, Verdict.UNVERIFIABLE),
        ):
            more = counters[name] - self._seen[name]
            self._seen[name] += more
            known = min(more, self._removed)
            self._removed -= known
            if more > known:
                yield verdict, more - known
