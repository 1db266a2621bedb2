"""The parameters that the daemon gives to the BPF programs (struct params)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts

_KEY = bytes(4)


class Params:
    """Reads and sets members of struct params, the one row of the map `params`."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._layout = maps["params"], layouts.structs["params"]

    def get(self) -> Any:
        """Return the parameters in force, with the C names of the members."""
        return self._layout.unpack(self._table.lookup(_KEY) or bytes(self._layout.size))

    def set(self, **values: int) -> None:
        """Change the named members and keep the others."""
        self._table.update(_KEY, self._layout.pack(**(vars(self.get()) | values)))
