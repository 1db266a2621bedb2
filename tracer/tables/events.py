"""The events that the BPF programs send through the ring buffer (struct event)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracer.tables.c_structs import Layouts

_DETAILS = {
    "WAITS_FOR_ITSELF": "own_wait",
    "MIGRATION_LEFT": "left_entries",
    "MIGRATOR_DIED": "left_entries",
    "ORDER_REVERSED": "reversed_order",
    "PROTOCOL_NEW": "new_protocol",
    "INSERTED_UNLOCKED": "unlocked_folio",
    "REMOVED_UNLOCKED": "unlocked_folio",
    "MOVED_MAPPED": "unlocked_folio",
    "MOVED_PERHAPS": "unlocked_folio",
    "COMPLAINT": "complaint",
    "LEFT_CACHE_MAPPED": "left_cache",
    "LEFT_CACHE_UNLOCKED": "left_cache",
    "UNMAPPED_UNLOCKED": "left_cache",
    "DESTINATION_MAPPED": "mapped_destination",
}
"""The member of union event_detail that an event kind fills in (shared.h)."""


@dataclass(frozen=True)
class Event:
    """One event. The members from `entries` on are those of its kind; the others are 0.

    Times are in nanoseconds of CLOCK_MONOTONIC.
    entries, visits: outstanding entries, and the visit clock when their migration began.
    mm, vma, addr, folio: where a folio is not locked, or is mapped, or the window of a new
    protocol; mm, vma: 0 where they are not known.
    outer, inner: two mms whose locks are nested in both orders; first_ns, last_ns: of the opposite
    order.
    lock, count, owner: the rwsem that a task waits for, which it holds itself; lock_class,
    wanted, held: by number (enum lock_class, enum wait_mode).
    freed: the mm that a complaint may be about, as its task is freeing it.
    mapping, index, hugetlb: the address_space that a folio leaves, its page there, and whether that
    is hugetlbfs.
    entry, level: a page-table entry where page tables are about to be moved to.
    """

    kind: str
    time_ns: int
    start_ns: int
    tid: int
    tgid: int
    comm: str
    stack: int
    cgroup: int = 0
    cgroup_name: str = ""
    entries: int = 0
    visits: int = 0
    mode: int = 0
    reason: int = 0
    mm: int = 0
    vma: int = 0
    addr: int = 0
    folio: int = 0
    outer: int = 0
    inner: int = 0
    held_ns: int = 0
    first_ns: int = 0
    first_held_ns: int = 0
    last_ns: int = 0
    last_held_ns: int = 0
    first_stack: int = 0
    first_tid: int = 0
    lock: int = 0
    count: int = 0
    owner: int = 0
    lock_class: int = 0
    wanted: int = 0
    held: int = 0
    freed: int = 0
    mapping: int = 0
    index: int = 0
    hugetlb: int = 0
    entry: int = 0
    level: int = 0

    @property
    def task(self) -> dict[str, Any]:
        """The task that caused the event, as it was then, with the keys of a report."""
        group = (
            {"cgroup": {"id": self.cgroup, "name": self.cgroup_name or "/"}} if self.cgroup else {}
        )
        return {"pid": self.tid, "tgid": self.tgid, "comm": self.comm} | group


class Events:
    """Decoder of the records of the ring buffer."""

    def __init__(self, layouts: Layouts) -> None:
        self._layout = layouts.structs["event"]
        self._details = {kind: layouts.structs[name] for kind, name in _DETAILS.items()}
        self._sighting = layouts.structs["sighting"]
        self._line = layouts.structs["complaint_line"]
        self._key_size = layouts.structs["protocol_key"].size
        self._kinds = {layouts.constants[name]: name for name in layouts.enums["event_kind"]}

    def decode(self, raw: bytes) -> Event:
        """Decode the struct event at the start of a record.

        Its kind is "?" if the header has no such kind.
        """
        members = vars(self._layout.unpack(raw))
        kind, detail = self._kinds.get(members.pop("kind"), "?"), members.pop("detail")
        if kind in self._details:
            members |= vars(self._details[kind].unpack(detail))
        return Event(kind, **members)

    def sighting(self, raw: bytes) -> tuple[bytes, Any]:
        """Return the protocol key and the struct sighting that follow a PROTOCOL_NEW event."""
        at = self._layout.size
        end = at + self._sighting.size
        return raw[end : end + self._key_size], self._sighting.unpack(raw[at:])

    def complaint_line(self, raw: bytes) -> str:
        """Return the beginning of the line that follows a COMPLAINT event; empty: not readable."""
        line = self._line.unpack(raw[self._layout.size :])
        return str(line.text)[: line.length]
