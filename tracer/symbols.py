"""Kernel addresses as names, from /proc/kallsyms. Read at most once, and only when there is a stack to explain."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import dropwhile

from tracer.kernel import Kernel

_LONGEST_FUNCTION = 1 << 17  # bytes; beyond, the address is of something that kallsyms does not list


class Symbols:
    """Symbolises stacks of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @cached_property
    def _sorted(self) -> tuple[list[int], list[str]]:
        pairs = self._kernel.functions()
        return [address for address, _ in pairs], [name for _, name in pairs]

    def name(self, address: int) -> str:
        """`symbol+0x12`, or the bare address where kallsyms hides or lacks it."""
        addresses, names = self._sorted
        at = bisect_right(addresses, address) - 1
        near = at >= 0 and address - addresses[at] < _LONGEST_FUNCTION
        return f"{names[at]}+{address - addresses[at]:#x}" if near else f"{address:#x}"

    def stack(self, addresses: Sequence[int]) -> tuple[str, ...]:
        """Innermost first, without the trampoline and the program that took it (they have no name, or one that begins with bpf_)."""
        names = [self.name(address) for address in addresses]
        return tuple(dropwhile(lambda name: name.startswith(("0x", "bpf_prog_", "bpf_trampoline_")), names)) or tuple(names)
