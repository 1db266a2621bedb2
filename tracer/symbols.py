"""Kernel addresses as names, from /proc/kallsyms. Read at most once, and only when there is a stack to explain."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

from tracer.kernel import Kernel


class Symbols:
    """Symbolises stacks of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @cached_property
    def _sorted(self) -> tuple[list[int], list[str]]:
        pairs = sorted((address, name) for name, address in self._kernel.symbols.items() if address)
        return [address for address, _ in pairs], [name for _, name in pairs]

    def name(self, address: int) -> str:
        """`symbol+0x12`, or the bare address where kallsyms hides or lacks it."""
        addresses, names = self._sorted
        at = bisect_right(addresses, address) - 1
        return f"{names[at]}+{address - addresses[at]:#x}" if at >= 0 else f"{address:#x}"

    def stack(self, addresses: Sequence[int]) -> tuple[str, ...]:
        """Innermost first."""
        return tuple(self.name(address) for address in addresses)
