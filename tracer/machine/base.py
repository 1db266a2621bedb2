"""What a machine's module declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tracer.machine.page_format import PageFormat


@dataclass(frozen=True)
class Registers:
    """Where a kprobe's program finds things in struct pt_regs: offsets in bytes.

    arguments: of the first parameters, in order. stack_pointer, returned: of both.
    pushed: the words between the stack pointer at a function's entry and its first argument on the
    stack. popped: the bytes by which a kretprobe finds the stack pointer higher.
    pt_regs: C text of the struct, for BCC's headers.
    """

    arguments: tuple[int, ...]
    stack_pointer: int
    returned: int
    pushed: int
    popped: int
    pt_regs: str


@dataclass(frozen=True)
class Memory:
    """Facts of the running system that decide the format of its page tables.

    page_shift: of its pages. address_bits: of a process's addresses; 0: not known yet.
    five_levels: x86-64 uses five levels. ram: the physical addresses of the first RAM and behind
    the last; 0, 0: not known.
    """

    page_shift: int
    address_bits: int = 0
    five_levels: bool = False
    ram: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class OwnMm:
    """Our own mm, and what was found out already.

    mm, pgd: addresses. vmemmap: of the struct page of frame 0. struct_page: its size.
    value: reads the u64 at an address. owner: returns the mm that the struct page of our pgd names
    if this is the base of the direct map. symbol: the address of a kernel symbol, or 0.
    """

    mm: int
    pgd: int
    vmemmap: int
    struct_page: int
    value: Callable[[int], int]
    owner: Callable[[int], int]
    symbol: Callable[[str], int]


@dataclass(frozen=True)
class Machine:
    """One architecture, by its name in uname(2).

    reorders_loads: a CPU may do loads in another order than the program has them.

    page_format: returns the format as far as it is known without looking at an entry.
    learned: returns the format with what the entry of a present page without access (PROT_NONE)
    tells; None where it tells nothing that is known.
    bases: yields addresses that physical address 0 may have in the direct map. It reads no memory
    under them, and each one lets every frame of RAM lie where the kernel maps nothing but RAM.
    """

    name: str
    reorders_loads: bool
    registers: Registers
    page_format: Callable[[Memory], PageFormat]
    learned: Callable[[PageFormat, int], PageFormat | None]
    bases: Callable[[OwnMm, Memory], Iterable[int]]
