"""Kernel stacks by their id (BPF_MAP_TYPE_STACK_TRACE, kernel/bpf/stackmap.c)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tracer.bpf.maps import Table


class Stacks:
    """Reader of the stack maps.

    On a hash collision in the map `stacks` the programs use the map `more_stacks`; its ids start at
    the number of rows of `stacks`. Flights have a map of their own: the stacks of all windows would
    leave no room for those of violations.
    """

    def __init__(self, maps: Mapping[str, Table]) -> None:
        self._stacks, self._more_stacks = maps["stacks"], maps["more_stacks"]
        self._flight_stacks = maps.get("flight_stacks")

    def of_event(self, stack: int) -> list[int]:
        """Return the addresses of an event's stack, innermost first; empty if none was taken."""
        rows = self._stacks.max_entries
        return (
            _addresses(self._more_stacks, stack - rows)
            if stack >= rows
            else _addresses(self._stacks, stack)
        )

    def of_flight(self, stack: int) -> list[int]:
        """Return the addresses of a flight's stack, innermost first; empty if none was taken."""
        return _addresses(self._flight_stacks, stack) if self._flight_stacks else []


def _addresses(table: Table, stack: int) -> list[int]:
    raw = table.lookup(struct.pack("<i", stack)) if stack >= 0 else None
    return [address for (address,) in struct.iter_unpack("<Q", raw or b"") if address]
