"""What a suspect's VMA and folio are, in words: flags as letters and names, file, kind and order. Read by a program run on demand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracer.bpf.maps import Runnable, Table
from tracer.kernel.running import Kernel
from tracer.tables.c_structs import Layouts

ENUM = "pageflags"
"""What a scene names by the kernel's own words."""
VM_LETTERS = "rd wr ex sh mr mw me ms gd um pf - uw lo io sr rr dc de lf ac nr ht sf ar wf dd sd mm hg nh mg".split()
"""A pair of letters per bit of vm_flags, as /proc/PID/smaps has them (fs/proc/task_mmu.c, show_smap_vma_flags())."""
_MOVABLE, _ANON = 2, 1  # PAGE_MAPPING_FLAGS; both: KSM
_HUGETLB = 1 << 22  # VM_HUGETLB


def vm_letters(flags: int) -> str:
    """`rw-p rd wr mr mw me ac`: access as in /proc/PID/maps, then every flag that has letters."""
    access = "".join(letter if flags >> bit & 1 else "-" for bit, letter in enumerate("rwx")) + (
        "s" if flags & 8 else "p"
    )
    return " ".join(
        [
            access,
            *(
                letters
                for bit, letters in enumerate(VM_LETTERS)
                if flags >> bit & 1 and letters != "-"
            ),
        ]
    )


class ObjectReader:
    """look() at a VMA and a folio by address. `there` is False where the program is not loaded."""

    def __init__(
        self, maps: Mapping[str, Table], look: Runnable | None, layouts: Layouts, kernel: Kernel
    ) -> None:
        self._look, self._table, self._layout = look, maps.get("scene"), layouts.structs["scene"]
        bits = {
            value: name
            for name, value in reversed(kernel.enumerators(ENUM).items())
            if name.startswith("PG_")
        }
        self._bits = {
            bit: name.removeprefix("PG_") for bit, name in sorted(bits.items()) if bit < 32
        }

    @property
    def there(self) -> bool:
        return bool(self._look and self._table)

    def look(self, vma: int, folio: int = 0) -> Any:
        """struct scene, or None."""
        if not self._look or not self._table or not (vma or folio):
            return None
        self._look.run(vma, folio)
        raw = self._table.lookup(bytes(4))
        return self._layout.unpack(raw) if raw else None

    def flag_words(self, flags: int) -> list[str]:
        """Names of the page flags that are set: the first name where a bit has several."""
        return [name for bit, name in self._bits.items() if flags >> bit & 1]

    def vma(self, vma: int, mm: int = 0) -> dict[str, Any]:
        """What is known of a VMA now. `same`: it is still a VMA of that mm."""
        now = self.look(vma)
        if now is None or not now.vm_mm:
            return {}
        found: dict[str, Any] = {
            "vma": hex(vma),
            "vm_start": hex(now.vm_start),
            "vm_end": hex(now.vm_end),
            "flags": vm_letters(now.vm_flags),
        }
        found |= {"flags": vm_letters(now.vm_flags), "same": mm in (0, now.vm_mm)}
        found |= {"file": now.file} if now.file else {}
        return found | {
            name: hex(value)
            for name, value in (("anon", now.anon), ("i_mmap", now.i_mmap))
            if value
        }

    def folio(self, folio: int, pfn: int | None = None, vm_flags: int = 0) -> dict[str, Any]:
        """What a folio is now. A page that was given back has other flags, or is another's."""
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
            "locked": bool(now.folio_flags & 1),
        }


def _kind(mapping: int, vm_flags: int) -> str:
    if vm_flags & _HUGETLB:
        return "hugetlb"
    low = mapping & (_ANON | _MOVABLE)
    return {
        0: "file" if mapping else "free or not mapped",
        _ANON: "anon",
        _ANON | _MOVABLE: "ksm",
        _MOVABLE: "movable",
    }[low]
