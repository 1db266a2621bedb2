"""Address spaces that have page tables although no task may refer to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts
from tracer.tables.fork_windows import ForkWindows
from tracer.tables.mm import Mm


class OtherMms:
    """Reader of the mms that an iterator over all tasks may not find.

    They exit (map `dying_mms`), or dup_mmap() fills them for a child (map `fork_windows`).
    """

    def __init__(
        self, maps: Mapping[str, Table], layouts: Layouts, fork_windows: ForkWindows
    ) -> None:
        self._dying, self._layout = maps.get("dying_mms"), layouts.structs["dying_mm"]
        self._fork_windows = fork_windows

    def read(self) -> Iterator[Mm]:
        """Yield the exiting mms, then the children of forks."""
        if self._dying:
            for key, raw in self._dying.items():
                dying = self._layout.unpack(raw)
                address = int.from_bytes(key, "little")
                yield Mm(address, dying.pgd, dying.tgid, "(exiting)", dying.id)
        yield from self._fork_windows.children()
