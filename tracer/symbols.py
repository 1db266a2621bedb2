"""Kernel addresses as names, from /proc/kallsyms. Read at most once, and only when there is a stack to explain."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import dropwhile

from tracer.kernel import Kernel

_LONGEST_FUNCTION = 1 << 17  # bytes; beyond, the address is of something that kallsyms does not list


class Symbols:
    """Symbolises stacks of one kernel. Some eighty thousand names are kept as one string: as objects they would take 20 MB."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @cached_property
    def _sorted(self) -> tuple[array[int], array[int], bytes]:
        """Addresses in order, where each one's name begins, and the names with a zero after each."""
        addresses, starts, names = array("Q"), array("I"), bytearray()
        for address, name in self._kernel.functions():
            addresses.append(address)
            starts.append(len(names))
            names += name.encode() + b"\0"
        order = array("I", sorted(range(len(addresses)), key=addresses.__getitem__))
        return array("Q", (addresses[n] for n in order)), array("I", (starts[n] for n in order)), bytes(names)

    def name(self, address: int) -> str:
        """`symbol+0x12`, or the bare address where kallsyms hides or lacks it."""
        addresses, starts, names = self._sorted
        at = bisect_right(addresses, address) - 1
        if at < 0 or address - addresses[at] >= _LONGEST_FUNCTION:
            return f"{address:#x}"
        return f"{names[starts[at] : names.index(0, starts[at])].decode()}+{address - addresses[at]:#x}"

    def stack(self, addresses: Sequence[int]) -> tuple[str, ...]:
        """Innermost first, without the trampoline and the program that took it (they have no name, or one that begins with bpf_)."""
        names = [self.name(address) for address in addresses]
        return tuple(dropwhile(lambda name: name.startswith(("0x", "bpf_prog_", "bpf_trampoline_")), names)) or tuple(names)
