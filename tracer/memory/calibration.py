"""Finding the direct map and the struct page array of this kernel, so that the oracle reads what it means to read.

Nothing is assumed and no memory under a guessed base is read: see `calibrate` in probes/oracle.bpf.c. The result counts only if
walks of the daemon's own pages agree with its own pagemap.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tracer.bpf.maps import Runnable, Table
from tracer.memory.entries import FoundEntry
from tracer.memory.page_tables import Oracle
from tracer.tables.c_structs import Layouts
from tracer.tables.mm import Mm
from tracer.tables.records import Records

_GUESSES = 1 << 16  # 1 GiB apart: 64 TiB
_OWN_PAGES = 64
_PFN = (1 << 55) - 1


@dataclass(frozen=True)
class Calibration:
    """What was found; reason says why not, where `ready` is false."""

    ready: bool
    reason: str = ""
    page_offset: int = 0
    vmemmap: int = 0


def own_pfn(address: int) -> int:
    """The page frame behind one of our own addresses, from our own pagemap; 0 where not present or hidden."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        raw = os.pread(pagemap.fileno(), 8, address // mmap.PAGESIZE * 8)
    (value,) = struct.unpack("<Q", raw)
    return value & _PFN if value >> 63 else 0


def _address(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def calibrate(
    maps: Mapping[str, Table],
    programs: Mapping[str, Runnable],
    oracle: Oracle,
    books: Records,
    layouts: Layouts,
    page_size_of_struct: int,
    address_of: Callable[[str], int],
) -> Calibration:
    """Find both bases, set them in params, and check them; on failure params stay without."""
    layout, table, run = layouts.structs["calibration"], maps["calibration"], programs["calibrate"]

    def ask(*args: int) -> Any:
        run.run(*args)
        return layout.unpack(table.lookup(bytes(4)) or bytes(layout.size))

    with contextlib.ExitStack() as stack:
        files, pfns = [], []
        for number in range(2):
            fd = os.memfd_create(f"rmapd-{number}")
            stack.callback(os.close, fd)
            os.write(fd, bytes(mmap.PAGESIZE))
            page = mmap.mmap(fd, mmap.PAGESIZE)
            page[0] = 1
            files.append(fd)
            pfns.append(own_pfn(_address(page)))
        found = ask(*files, 0, 0)
        folios = (found.first_folio, found.second_folio)
    if not all(pfns):
        return Calibration(
            False, "our own pagemap shows no page frame numbers (CAP_SYS_ADMIN is missing)"
        )
    bases = {folio - pfn * page_size_of_struct for folio, pfn in zip(folios, pfns, strict=True)}
    if len(bases) != 1 or any(folio & 3 or not folio for folio in folios):
        return Calibration(False, "the struct pages of our own pages do not lie in one array")
    vmemmap = bases.pop()
    books.set_params(vmemmap=vmemmap)
    guesses = ((found.pgd >> 30 << 30) - (n << 30) for n in range(_GUESSES))
    page_offset = next((base for base in guesses if ask(*files, 0, base).owner == found.mm), 0)
    if not page_offset and (symbol := address_of("page_offset_base")):
        page_offset = ask(*files, symbol, 0).value
    books.set_params(page_offset=page_offset)
    if not page_offset or not _agrees(oracle, found.mm, found.pgd):
        books.set_params(page_offset=0, vmemmap=0)
        reason = (
            "walks of our own pages disagree with pagemap"
            if page_offset
            else "no base of the direct map fits our own page table"
        )
        return Calibration(False, reason)
    return Calibration(True, "", page_offset, vmemmap)


def _agrees(oracle: Oracle, mm: int, pgd: int) -> bool:
    """Whether the oracle and pagemap name the same page frames for fresh pages of our own."""
    pages = mmap.mmap(-1, _OWN_PAGES * mmap.PAGESIZE)
    for n in range(_OWN_PAGES):
        pages[n * mmap.PAGESIZE] = 1
    start = _address(pages)
    addresses = [start + n * mmap.PAGESIZE for n in range(_OWN_PAGES)]
    answers = oracle.ask([(Mm(mm, pgd, os.getpid()), address) for address in addresses])
    return all(
        answer.found == "FOUND_PRESENT" and frame(answer) == own_pfn(answer.addr)
        for answer in answers
    )


def frame(answer: FoundEntry) -> int:
    """The page frame of a present entry, small or huge, at the answer's address."""
    entry, level, addr = answer.entry, answer.level, answer.addr
    span = 1 << (9 * (level - 1))
    return ((entry >> 12) & ((1 << 40) - 1) & ~(span - 1)) + ((addr >> 12) & (span - 1))
