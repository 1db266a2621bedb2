"""Kernel addresses as names, from /proc/kallsyms: read when there is a stack to explain, and again where an address has no name
(a module that came later), once a minute at most."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import dropwhile

from tracer.kernel.running import Kernel

_LONGEST_FUNCTION = (
    1 << 17
)  # bytes; beyond, the address is of something that kallsyms does not list
_AGAIN_SECONDS = 60.0
_NOT_THE_KERNELS = ("0x", "bpf_prog_", "bpf_trampoline_", "bpf_trace_run")


class Symbols:
    """Symbolises stacks of one kernel. Some eighty thousand names are kept as one string: as objects they would take 20 MB."""

    def __init__(self, kernel: Kernel, clock: Callable[[], float] = time.monotonic) -> None:
        self._kernel, self._clock = kernel, clock
        self._addresses, self._starts, self._names = array("Q"), array("I"), b""
        self._read: float | None = None

    def name(self, address: int) -> str:
        """`symbol+0x12`, `symbol+0x12 [module]`, or the bare address where kallsyms hides or lacks it."""
        known = self._known(address)
        if not known and (self._read is None or self._clock() - self._read >= _AGAIN_SECONDS):
            self._read_all()
            known = self._known(address)
        return known or f"{address:#x}"

    def _read_all(self) -> None:
        """Addresses in order, where each one's name begins, and the names, each with its module and a zero after it."""
        addresses, starts, names = array("Q"), array("I"), bytearray()
        for address, name, module in self._kernel.functions():
            addresses.append(address)
            starts.append(len(names))
            names += f"{name}\t{module}\0".encode()
        order = array("I", sorted(range(len(addresses)), key=addresses.__getitem__))
        self._addresses, self._starts = (
            array("Q", (addresses[n] for n in order)),
            array("I", (starts[n] for n in order)),
        )
        self._names, self._read = bytes(names), self._clock()

    def _known(self, address: int) -> str:
        at = bisect_right(self._addresses, address) - 1
        if at < 0 or address - self._addresses[at] >= _LONGEST_FUNCTION:
            return ""
        start = self._starts[at]
        name, _, module = self._names[start : self._names.index(0, start)].decode().partition("\t")
        return f"{name}+{address - self._addresses[at]:#x}{' ' if module else ''}{module}"

    def stack(self, addresses: Sequence[int]) -> tuple[str, ...]:
        """Innermost first, without the program that took it and what called that."""
        names = [self.name(address) for address in addresses]
        return tuple(dropwhile(lambda name: name.startswith(_NOT_THE_KERNELS), names)) or tuple(
            names
        )
