"""Page tables as a test writes them, in every format that rmapd knows.

The bits are written here a second time, from the kernel's headers, and not taken from
tracer/machine/: a format that is wrong there disagrees.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracer.machine import aarch64, x86_64
from tracer.machine.base import Machine, Memory
from tracer.machine.page_format import ALL, PageFormat

_X86_USER = 0x067  # present, writable, user, accessed, dirty
_X86_PSE, _X86_PROTNONE, _X86_SPECIAL = 0x080, 0x100, 0x200
_ARM_USER = 0xF43 | 1 << 54  # valid, page, user, inner shareable, accessed, not global, UXN
_ARM_SHAREABLE = 0x300
_ARM_SPECIAL = 1 << 56


@dataclass(frozen=True)
class Format:
    """One format. old_swap: the layout of arm64 before 6.9. bits: of a process's addresses."""

    name: str
    machine: Machine
    page_shift: int
    bits: int
    old_swap: bool = False

    @property
    def memory(self) -> Memory:
        return Memory(self.page_shift, self.bits, self.bits == 56, (0, 1 << 40))

    @property
    def is_arm(self) -> bool:
        return self.machine is aarch64.MACHINE

    @property
    def is_lpa2(self) -> bool:
        return self.is_arm and self.bits == 52 and self.page_shift < 16

    @property
    def physical_bits(self) -> int:
        """How many bits a physical address may have in an entry."""
        if self.is_arm:
            return 52 if self.is_lpa2 or self.page_shift == 16 else 48
        return 52 if self.bits == 56 else 46

    @property
    def learned(self) -> PageFormat:
        """The format that rmapd uses once it has looked at a page without access."""
        known = self.machine.page_format(self.memory)
        found = self.machine.learned(known, self.no_access(5))
        assert found
        return found

    def _frame(self, pfn: int) -> int:
        at = pfn << self.page_shift
        if self.is_lpa2:
            return at & (1 << 50) - 1 | at >> 50 << 8
        if self.is_arm and self.page_shift == 16:
            return at & (1 << 48) - 1 | at >> 48 << 12
        return at

    def _user(self) -> int:
        if not self.is_arm:
            return _X86_USER
        return _ARM_USER & ~_ARM_SHAREABLE if self.is_lpa2 else _ARM_USER

    def page(self, pfn: int) -> int:
        return self._frame(pfn) | self._user()

    def table(self, address: int) -> int:
        """The entry that leads to a table at a physical address."""
        return self._frame(address >> self.page_shift) | (3 if self.is_arm else _X86_USER)

    def huge(self, pfn: int) -> int:
        return self._frame(pfn) | (self._user() & ~2 if self.is_arm else _X86_USER | _X86_PSE)

    def special(self, pfn: int) -> int:
        return self.page(pfn) | (_ARM_SPECIAL if self.is_arm else _X86_SPECIAL)

    def no_access(self, pfn: int) -> int:
        """The entry of a present page under PROT_NONE."""
        if not self.is_arm:
            inverted = ~(pfn << 12) & (1 << self.physical_bits) - (1 << 12)
            return 1 << 63 | inverted | _X86_PROTNONE | 0x62
        none = self._frame(pfn) | self._user() & ~1
        return none | 1 << 58 if self.old_swap else none | 1 << 11

    def swap(self, kind: int, pfn: int, flags: int = 0) -> int:
        """A swap entry; flags: accessed and dirty bits of migration entries, above the pfn."""
        if not self.is_arm:
            offset = pfn | flags << self.physical_bits - 12
            return kind << 59 | ((~offset << 14 & ALL) >> 5) & ~(31 << 59) & ALL
        offset = pfn | flags << 48 - self.page_shift
        return kind << 3 | offset << 8 if self.old_swap else kind << 6 | offset << 12


X86_4 = Format("x86-64, 4 levels", x86_64.MACHINE, 12, 47)
X86_5 = Format("x86-64, 5 levels", x86_64.MACHINE, 12, 56)
_ARM = aarch64.MACHINE
ARM_LPA2 = Format("arm64, 4K, LPA2", _ARM, 12, 52)
FORMATS = (
    X86_4,
    X86_5,
    Format("arm64, 4K, 39 bits", _ARM, 12, 39),
    Format("arm64, 4K, 48 bits, until 6.9", _ARM, 12, 48, old_swap=True),
    Format("arm64, 4K, 48 bits", _ARM, 12, 48),
    ARM_LPA2,
    Format("arm64, 16K, 36 bits", _ARM, 14, 36),
    Format("arm64, 16K, 47 bits, until 6.9", _ARM, 14, 47, old_swap=True),
    Format("arm64, 16K, 48 bits", _ARM, 14, 48),
    Format("arm64, 16K, LPA2", _ARM, 14, 52),
    Format("arm64, 64K, 42 bits", _ARM, 16, 42),
    Format("arm64, 64K, 48 bits, until 6.9", _ARM, 16, 48, old_swap=True),
    Format("arm64, 64K, 52 bits", _ARM, 16, 52),
)
