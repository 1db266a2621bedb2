"""The events that the BPF programs send through the ring buffer (struct event)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracer.tables.c_structs import Layouts


@dataclass(frozen=True)
class Event:
    """One event. Times are in nanoseconds of CLOCK_MONOTONIC.

    The meaning of `a` and `b` depends on the kind: see struct event.
    """

    kind: str
    time_ns: int
    start_ns: int
    a: int
    b: int
    first_ns: int
    tid: int
    tgid: int
    first_tid: int
    comm: str
    stack: int
    first_stack: int
    mode: int
    reason: int
    addr: int = 0
    folio: int = 0
    cgroup: int = 0
    cgroup_name: str = ""
    held_ns: int = 0
    first_held_ns: int = 0
    last_ns: int = 0
    last_held_ns: int = 0

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
        self._sighting = layouts.structs["sighting"]
        self._key_size = layouts.structs["protocol_key"].size
        self._kinds = {layouts.constants[name]: name for name in layouts.enums["event_kind"]}

    def decode(self, raw: bytes) -> Event:
        """Decode the struct event at the start of a record.

        Its kind is "?" if the header has no such kind.
        """
        members = vars(self._layout.unpack(raw))
        return Event(**members | {"kind": self._kinds.get(members["kind"], "?")})

    def sighting(self, raw: bytes) -> tuple[bytes, Any]:
        """Return the protocol key and the struct sighting that follow a PROTOCOL_NEW event."""
        at = self._layout.size
        end = at + self._sighting.size
        return raw[end : end + self._key_size], self._sighting.unpack(raw[at:])
