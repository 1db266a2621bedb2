"""The protocol table: how many windows of each protocol there were (struct protocol_row)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts


class ProtocolTable:
    """Reader of the map `protocols`, whose keys tracer.protocol.codec decodes.

    Empty where the window hooks are not loaded.
    """

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, row = maps.get("protocols"), layouts.structs["protocol_row"]
        self._unpack, self._count, self._first_ns = (
            row.code.unpack,
            row.place("count"),
            row.place("first_ns"),
        )

    def counts(self) -> dict[bytes, int]:
        """Return how many windows there were so far, by protocol key."""
        return (
            {key: self._unpack(raw)[self._count] for key, raw in self._table.items()}
            if self._table
            else {}
        )

    def counts_of(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """Return the counts of these protocols only, by a look-up each."""
        table, unpack = self._table, self._unpack
        return {
            key: unpack(raw)[self._count] for key in keys if table and (raw := table.lookup(key))
        }

    def keys_by_first_ns(self) -> dict[int, bytes]:
        """Return protocol keys by the time of their first window.

        The flight recorder names a protocol by this time.
        """
        return (
            {self._unpack(raw)[self._first_ns]: key for key, raw in self._table.items()}
            if self._table
            else {}
        )
