"""VMAs and folios as they are now, for the evidence of a violation: flags as letters and names.

A BPF program reads them by address, on demand. It takes no lock and causes no fault. An object that
was freed meanwhile gives wrong values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracer.bpf.maps import Table
from tracer.bpf.programs import Runnable
from tracer.kernel.running import Kernel
from tracer.tables.c_structs import Layouts

PAGE_FLAGS = "pageflags"
"""The enum that names page flags (include/linux/page-flags.h)."""
_VM_LETTERS = (
    "rd wr ex sh mr mw me ms gd um pf - uw lo io sr rr dc de lf ac nr ht sf ar wf dd sd mm hg nh mg"
).split()
"""Two letters for each bit of vm_flags, as in /proc/PID/smaps.

fs/proc/task_mmu.c, show_smap_vma_flags().
"""
_VM_SHARED, _VM_HUGETLB = 1 << 3, 1 << 22  # include/linux/mm.h
_ANON, _MOVABLE = 1, 2  # PAGE_MAPPING_FLAGS (include/linux/page-flags.h); both: PAGE_MAPPING_KSM
_PG_LOCKED = 1 << 0


def vm_letters(flags: int) -> str:
    """Write vm_flags as `rw-p rd wr mr mw me ac`.

    First the access as in /proc/PID/maps, then every flag that has letters.
    """
    access = "".join(letter if flags >> bit & 1 else "-" for bit, letter in enumerate("rwx"))
    kind = "s" if flags & _VM_SHARED else "p"
    names = (name for bit, name in enumerate(_VM_LETTERS) if flags >> bit & 1 and name != "-")
    return " ".join([access + kind, *names])


class ObjectReader:
    """Reader of VMAs and folios by address. Empty where its program is not loaded."""

    def __init__(
        self, maps: Mapping[str, Table], look: Runnable | None, layouts: Layouts, kernel: Kernel
    ) -> None:
        """look: the program. kernel: has the names of page flags."""
        self._look, self._table = look, maps.get("object_info")
        self._layout = layouts.structs["object_info"]
        bits = {
            value: name
            for name, value in reversed(kernel.enumerators(PAGE_FLAGS).items())
            if name.startswith("PG_")
        }
        self._bits = {
            bit: name.removeprefix("PG_") for bit, name in sorted(bits.items()) if bit < 32
        }

    def look(self, vma: int, folio: int = 0) -> Any:
        """Read the VMA and the folio at these addresses (0: none).

        Return the struct object_info that the program fills; None if it is not loaded.
        """
        if not self._look or not self._table or not (vma or folio):
            return None
        self._look.run(vma, folio)
        raw = self._table.lookup(bytes(4))
        return self._layout.unpack(raw) if raw else None

    def flag_words(self, flags: int) -> list[str]:
        """Return the names of the page flags that are set.

        Of several names for one bit, the first in the enum.
        """
        return [name for bit, name in self._bits.items() if flags >> bit & 1]

    def vma(self, vma: int, mm: int = 0) -> dict[str, Any]:
        """Describe a VMA with the keys of a report.

        `same`: it is still a VMA of that mm; mm 0 is not compared.
        """
        now = self.look(vma)
        if now is None or not now.vm_mm:
            return {}
        found: dict[str, Any] = {
            "vma": hex(vma),
            "vm_start": hex(now.vm_start),
            "vm_end": hex(now.vm_end),
            "flags": vm_letters(now.vm_flags),
            "same": mm in (0, now.vm_mm),
        }
        found |= {"file": now.file} if now.file else {}
        locks = {"anon": now.anon, "i_mmap": now.i_mmap}
        return found | {name: hex(address) for name, address in locks.items() if address}

    def folio(self, folio: int, pfn: int | None = None, vm_flags: int = 0) -> dict[str, Any]:
        """Describe a folio with the keys of a report.

        It may have been freed and belong to another mapping by now. pfn: added to the description.
        vm_flags: of a VMA that maps it.
        """
        now = self.look(0, folio)
        if now is None:
            return {}
        found = {
            "folio": hex(folio),
            "kind": _kind(now.folio_mapping, vm_flags),
            "order": now.folio_order,
        }
        found |= {"pfn": hex(pfn)} if pfn is not None else {}
        return found | {
            "flags": self.flag_words(now.folio_flags),
            "locked": bool(now.folio_flags & _PG_LOCKED),
        }


def _kind(mapping: int, vm_flags: int) -> str:
    """Name the kind of a folio by the low bits of folio->mapping."""
    if vm_flags & _VM_HUGETLB:
        return "hugetlb"
    return {
        0: "file" if mapping else "free or not mapped",
        _ANON: "anon",
        _ANON | _MOVABLE: "ksm",
        _MOVABLE: "movable",
    }[mapping & (_ANON | _MOVABLE)]
