"""Find the bases of the direct map and of the struct page array, and the format of page tables.

Nothing is assumed. Candidates for a base come from the machine's module, which reads no memory
under them that could be a device's. A base counts where numbers that we wrote into our own pages
are seen through it. The format counts where walks of our own pages, also of one without access,
agree with our own /proc/self/pagemap.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.bpf.maps import Table
from tracer.bpf.programs import Runnable
from tracer.kernel.running import Kernel
from tracer.machine.base import OwnMm
from tracer.machine.page_format import ALL
from tracer.memory.page_tables import Oracle
from tracer.tables.c_structs import Layouts
from tracer.tables.mm import Mm
from tracer.tables.params import Params

_OWN_PAGES = 64
_TRIES = 3  # the kernel may move one of our pages between two readings
_PFN = (1 << 55) - 1  # PM_PFRAME_MASK, fs/proc/task_mmu.c
_PRESENT = 63  # PM_PRESENT
_LIBC = ctypes.CDLL(None, use_errno=True)
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

    The page is made by a fault, since where `shmem_enabled` is `always` or `force` a write would
    make a huge page: the page cache then has no folio of one page in its root. Return their
    descriptors, which the stack closes, and the page frames of their pages.
    """
    fds, pfns = [], []
    for number in range(2):
        fd = os.memfd_create(f"rmapd-{number}")
        stack.callback(os.close, fd)
        os.ftruncate(fd, mmap.PAGESIZE)
        page = mmap.mmap(fd, mmap.PAGESIZE)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            page.madvise(mmap.MADV_NOHUGEPAGE)
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
    kernel: Kernel,
) -> Calibration:
    """Find the bases and the format of page tables, set them in the parameters, and prove them.

    If a step fails the parameters have no base.

    page_size_of_struct: sizeof(struct page).
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
        own = OwnMm(
            found.mm,
            found.pgd,
            vmemmap,
            page_size_of_struct,
            value=lambda address: int(ask(*fds, address, 0).value),
            owner=lambda base: int(ask(*fds, 0, base).owner),
            symbol=kernel.address_of,
        )
        page_format = kernel.page_format(found.task_size.bit_length() - 1)
        mm = Mm(found.mm, found.pgd, os.getpid(), id=found.id)
        reason = "no base of the direct map fits our own memory"
        bases = kernel.machine.bases(own, kernel.page_memory())
        for base in (base for base in bases for _ in range(_TRIES)):
            if not _shows_our_memory(base, own):
                continue
            params.set(page_offset=base)
            params.set_page_format(page_format)
            oracle.renew_memory_end()
            reason = _learn(oracle, params, kernel, mm)
            if not reason:
                return Calibration(True, "", base, vmemmap)
    params.set(page_offset=0, vmemmap=0, direct_map_end=0)
    return Calibration(False, reason)


def _shows_our_memory(base: int, own: OwnMm) -> bool:
    """Whether numbers that we wrote into pages of our own are seen through the direct map."""
    pages = mmap.mmap(-1, _OWN_PAGES * mmap.PAGESIZE)
    for n in range(_OWN_PAGES):
        pages[n * mmap.PAGESIZE : n * mmap.PAGESIZE + 8] = secret = os.urandom(8)
        pfn = own_pfn(mapping_address(pages) + n * mmap.PAGESIZE)
        seen = own.value(base + pfn * mmap.PAGESIZE & ALL)
        if seen != int.from_bytes(secret, sys.byteorder):
            return False
    return True


def _learn(oracle: Oracle, params: Params, kernel: Kernel, mm: Mm) -> str:
    """Learn how the kernel writes a page without access; return the step that failed, if any."""
    if not _agrees(oracle, mm):
        return "walks of our own pages disagree with pagemap"
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[0] = 1
    address, size = mapping_address(page), ctypes.c_size_t(mmap.PAGESIZE)
    pfn = own_pfn(address)
    if _LIBC.mprotect(ctypes.c_void_p(address), size, 0):
        return "the kernel refuses mprotect(PROT_NONE) of our own page"
    try:
        (raw,) = oracle.ask([(mm, address)])
        learned = kernel.machine.learned(oracle.page_format, raw.entry)
        if not learned:
            return f"the entry {raw.entry:#x} of our own PROT_NONE page is of no known format"
        params.set_page_format(learned)
        (entry,) = oracle.ask([(mm, address)])
        if entry.found != "FOUND_PRESENT" or entry.present_pfn != pfn:
            return f"the entry {raw.entry:#x} of our own PROT_NONE page does not name its page"
    finally:
        _LIBC.mprotect(ctypes.c_void_p(address), size, mmap.PROT_READ | mmap.PROT_WRITE)
    return "" if _agrees(oracle, mm) else "walks of our own pages disagree with pagemap"


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
