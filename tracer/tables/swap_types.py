"""The swap types of migration entries in this kernel.

They are SWP_MIGRATION_NUM numbers from SWP_MIGRATION_READ on (include/linux/swap.h); their values
depend on the kernel's configuration.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tracer.bpf.maps import Table

SWAP_TYPES = 32  # MAX_SWAPFILES_SHIFT is 5: a swap type has five bits (include/linux/swap.h)


class SwapTypes:
    """Reader of the map `entry_types`, filled as the kernel inserts migration entries."""

    def __init__(self, maps: Mapping[str, Table]) -> None:
        self._table = maps["entry_types"]

    def inserted(self) -> dict[int, int]:
        """Return each swap type that was inserted as a migration entry, and how often at least."""
        counts = (self._table.lookup(struct.pack("<I", n)) or b"" for n in range(SWAP_TYPES))
        return {
            n: value for n, raw in enumerate(counts) if (value := int.from_bytes(raw, "little"))
        }
