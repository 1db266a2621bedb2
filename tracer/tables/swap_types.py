"""The swap types that this kernel uses for migration entries (SWP_MIGRATION_READ and the types after it, include/linux/swap.h)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tracer.bpf.maps import Table

SWAP_TYPES = 32  # MAX_SWAPFILES_SHIFT is 5: a swap type has five bits (include/linux/swap.h)


class SwapTypes:
    """Reads the map `entry_types`, which the programs fill as the kernel inserts migration entries."""

    def __init__(self, maps: Mapping[str, Table]) -> None:
        self._table = maps["entry_types"]

    def inserted(self) -> dict[int, int]:
        """Return each swap type that was inserted as a migration entry, and how often at least."""
        counts = (self._table.lookup(struct.pack("<I", n)) or b"" for n in range(SWAP_TYPES))
        return {
            n: value for n, raw in enumerate(counts) if (value := int.from_bytes(raw, "little"))
        }
