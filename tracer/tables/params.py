"""The parameters that the daemon gives to the BPF programs (struct params)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tracer.bpf.maps import Table
from tracer.machine.page_format import PageFormat
from tracer.tables.c_structs import Layouts

_KEY = bytes(4)


class Params:
    """Reads and sets members of struct params, the one row of the map `params`."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._layout = maps["params"], layouts.structs["params"]
        self._constants, self._page_shift = layouts.constants, layouts.page_shift

    def get(self) -> Any:
        """Return the parameters in force, with the C names of the members."""
        return self._layout.unpack(self._table.lookup(_KEY) or bytes(self._layout.size))

    def page_format(self) -> PageFormat:
        """Return the format of page tables that the programs use."""
        return PageFormat(self._page_shift, *self.get().format)

    def set_page_format(self, page_format: PageFormat) -> None:
        """Let the programs use a format."""
        self.set(format=page_format.members())

    def set(self, **values: int | list[int]) -> None:
        """Change the named members and keep the others."""
        self._table.update(_KEY, self._layout.pack(**(vars(self.get()) | values)))

    def set_unhooked(self, walks: Collection[str]) -> None:
        """Let the tracepoints check folios in place of these hooks (enum unhooked)."""
        self.set(unhooked=sum(self._constants[f"{name.upper()}_UNHOOKED"] for name in walks))
