"""Find the bases of the direct map and of the struct page array (page_offset_base, vmemmap_base).

Nothing is assumed, and no memory under a guessed base is read. The comment at the BPF program
`calibrate` explains the method. The result counts only if walks of the daemon's own pages agree
with its own /proc/self/pagemap.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.bpf.maps import Table
from tracer.bpf.programs import Runnable
from tracer.memory.page_tables import Oracle
from tracer.tables.c_structs import Layouts
from tracer.tables.mm import Mm
from tracer.tables.params import Params

_GUESSES = 1 << 16  # KASLR aligns the base to 1 GiB (PUD_SIZE, arch/x86/mm/kaslr.c): 64 TiB
_OWN_PAGES = 64
_PFN = (1 << 55) - 1  # PM_PFRAME_MASK, fs/proc/task_mmu.c
_PRESENT = 63  # PM_PRESENT
_XA_TAGS = 3  # low bits of an xarray entry that is no plain pointer (include/linux/xarray.h)


@dataclass(frozen=True)
class Calibration:
    """The bases that were found; if they are not `ready` for use, the reason why not."""

    ready: bool
    reason: str = ""
    page_offset: int = 0
    vmemmap: int = 0


def own_pfn(address: int) -> int:
    """Return the page frame at an address of this process, by its own pagemap.

    0 if no page is present, or if the kernel hides the page frames.
    """
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        raw = os.pread(pagemap.fileno(), 8, address // mmap.PAGESIZE * 8)
    (value,) = struct.unpack("<Q", raw)
    return value & _PFN if value >> _PRESENT else 0


def mapping_address(mapping: mmap.mmap) -> int:
    """Return the address of a writable mapping of this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def _own_files(stack: contextlib.ExitStack) -> tuple[list[int], list[int]]:
    """Open two files of one page each.

    Return their descriptors, which the stack closes, and the page frames of their pages.
    """
    fds, pfns = [], []
    for number in range(2):
        fd = os.memfd_create(f"rmapd-{number}")
        stack.callback(os.close, fd)
        os.write(fd, bytes(mmap.PAGESIZE))
        page = mmap.mmap(fd, mmap.PAGESIZE)
        page[0] = 1
        fds.append(fd)
        pfns.append(own_pfn(mapping_address(page)))
    return fds, pfns


def calibrate(
    maps: Mapping[str, Table],
    programs: Mapping[str, Runnable],
    oracle: Oracle,
    params: Params,
    layouts: Layouts,
    page_size_of_struct: int,
    address_of: Callable[[str], int],
) -> Calibration:
    """Find both bases, set them in the parameters, and check them.

    If that fails the parameters have no base.

    page_size_of_struct: sizeof(struct page). address_of: returns the address of a kernel symbol, or
    0.
    """
    layout, table, run = layouts.structs["calibration"], maps["calibration"], programs["calibrate"]

    def ask(*args: int) -> Any:
        run.run(*args)
        return layout.unpack(table.lookup(bytes(4)) or bytes(layout.size))

    with contextlib.ExitStack() as stack:
        fds, pfns = _own_files(stack)
        found = ask(*fds, 0, 0)
    if not all(pfns):
        return Calibration(
            False, "our own pagemap shows no page frame numbers (CAP_SYS_ADMIN is missing)"
        )
    vmemmap = _vmemmap((found.first_folio, found.second_folio), pfns, page_size_of_struct)
    if vmemmap is None:
        return Calibration(False, "the struct pages of our own pages do not lie in one array")
    params.set(vmemmap=vmemmap)
    guesses = ((found.pgd >> 30 << 30) - (n << 30) for n in range(_GUESSES))
    page_offset = next((base for base in guesses if ask(*fds, 0, base).owner == found.mm), 0)
    if not page_offset and (symbol := address_of("page_offset_base")):
        page_offset = ask(*fds, symbol, 0).value
    params.set(page_offset=page_offset)
    if not page_offset or not _agrees(oracle, Mm(found.mm, found.pgd, os.getpid(), id=found.id)):
        params.set(page_offset=0, vmemmap=0)
        reason = (
            "walks of our own pages disagree with pagemap"
            if page_offset
            else "no base of the direct map fits our own page table"
        )
        return Calibration(False, reason)
    return Calibration(True, "", page_offset, vmemmap)


def _vmemmap(folios: Sequence[int], pfns: Sequence[int], size: int) -> int | None:
    """Return the base that both struct pages give; None if they differ or one is no struct page."""
    bases = {folio - pfn * size for folio, pfn in zip(folios, pfns, strict=True)}
    if len(bases) != 1 or any(folio & _XA_TAGS or not folio for folio in folios):
        return None
    return bases.pop()


def _agrees(oracle: Oracle, mm: Mm) -> bool:
    """Whether the oracle and pagemap name the same page frames for new pages of this process."""
    pages = mmap.mmap(-1, _OWN_PAGES * mmap.PAGESIZE)
    for n in range(_OWN_PAGES):
        pages[n * mmap.PAGESIZE] = 1
    start = mapping_address(pages)
    addresses = [start + n * mmap.PAGESIZE for n in range(_OWN_PAGES)]
    answers = oracle.ask([(mm, address) for address in addresses])
    return all(
        answer.found == "FOUND_PRESENT" and answer.present_pfn == own_pfn(answer.addr)
        for answer in answers
    )
