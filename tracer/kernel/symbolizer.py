"""Kernel addresses as names, from /proc/kallsyms.

It is read when there is a first stack to explain, and again, once a minute at most, where an
address has no name: a module may have been loaded since.
"""

from __future__ import annotations

import sys
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import dropwhile

from tracer.kernel.running import Kernel

_LONGEST_FUNCTION = 1 << 17  # bytes; an address beyond is of nothing that kallsyms lists
_AGAIN_SECONDS = 60.0
_NOT_THE_KERNELS = ("0x", "bpf_prog_", "bpf_trampoline_", "bpf_trace_run")


class Symbols:
    """Symbolizes stacks of one kernel.

    Some eighty thousand names are kept as one string: as objects they would take 20 MB.
    """

    def __init__(self, kernel: Kernel, clock: Callable[[], float] = time.monotonic) -> None:
        self._kernel, self._clock = kernel, clock
        self._addresses, self._starts, self._names = array("Q"), array("I"), b""
        self._read: float | None = None

    def name(self, address: int) -> str:
        """Return `symbol+0x12`, with ` [module]` behind it for a module's.

        Where kallsyms hides or lacks the symbol, the address as a number. The same name is the
        same object: thousands of stacks share some hundred frames.
        """
        known = self._known(address)
        if not known and (self._read is None or self._clock() - self._read >= _AGAIN_SECONDS):
            self._read_all()
            known = self._known(address)
        return sys.intern(known or f"{address:#x}")

    def _read_all(self) -> None:
        """Read addresses in order, where the name of each begins, and the names.

        Each name has its module and a zero behind it.
        """
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
        """Return the names of a stack, innermost first.

        Left out are the BPF program that took the stack, and what called it.
        """
        names = [self.name(address) for address in addresses]
        return tuple(dropwhile(lambda name: name.startswith(_NOT_THE_KERNELS), names)) or tuple(
            names
        )
