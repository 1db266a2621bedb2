"""The parameters that the daemon gives to the BPF programs (struct params)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts

_KEY = bytes(4)


class Params:
    """Reads and sets members of struct params, the one row of the map `params`."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._layout = maps["params"], layouts.structs["params"]
        self._constants = layouts.constants

    def get(self) -> Any:
        """Return the parameters in force, with the C names of the members."""
        return self._layout.unpack(self._table.lookup(_KEY) or bytes(self._layout.size))

    def set(self, **values: int) -> None:
        """Change the named members and keep the others."""
        self._table.update(_KEY, self._layout.pack(**(vars(self.get()) | values)))

    def set_unhooked(self, walks: Collection[str]) -> None:
        """Let the tracepoints check folios in place of these hooks (enum unhooked)."""
        self.set(unhooked=sum(self._constants[f"{name.upper()}_UNHOOKED"] for name in walks))
