"""R3: what a finding says of the folio that left the page cache, and of who maps it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.page_formats import X86_4
from tracer.checking.page_cache import PageCache
from tracer.checking.trail import Trail, TrailEntry
from tracer.checking.verdicts import Verdicts
from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.memory.entries import FoundEntry
from tracer.tables.events import Event
from tracer.tables.mm import Mm

MM = Mm(0xAAAA, 0x1000, 42, "mapper", 9)
FOLIO, MAPPING, VMA, ADDR, LOCK = 0xF000, 0xE000, 0xB000, 0x7000_0000, 0x10C


class Objects:
    def look(self, vma: int, _folio: int = 0) -> Any:
        return SimpleNamespace(vm_flags=0, i_mmap=LOCK) if vma else None

    def vma(self, vma: int, _mm: int = 0) -> dict[str, Any]:
        return {"file": "data\n"} if vma else {}

    def folio(self, _folio: int, vm_flags: int = 0) -> dict[str, Any]:
        return {"vm_flags": vm_flags}


class Oracle:
    def __init__(self, found: str, mms: Sequence[Mm] = (MM,)) -> None:
        self.found, self.known = found, mms

    def mms(self) -> list[Mm]:
        return list(self.known)

    def ask(self, questions: Sequence[tuple[Mm, int]]) -> list[FoundEntry]:
        return [
            FoundEntry(mm, addr, X86_4.learned, self.found, 0x5001, 1) for mm, addr in questions
        ]


class Trails:
    def __init__(self) -> None:
        self.asked: list[TrailEntry] = []

    def of_entry(self, entry: TrailEntry, _now_ns: int) -> Trail:
        self.asked.append(entry)
        return Trail(note="all of it")


def event(kind: str = "LEFT_CACHE_MAPPED", vma: int = VMA, hugetlb: int = 0) -> Event:
    where: dict[str, Any] = {"mm": MM.mm, "vma": vma, "addr": ADDR} if vma else {}
    return Event(
        kind, 20 * 10**9, 0, 7, 6, "remover", 3,
        folio=FOLIO, mapping=MAPPING, index=5, hugetlb=hugetlb, **where,
    )  # fmt: skip


def found(of: Event, oracle: Oracle | None = None, trails: Trails | None = None) -> Finding:
    verdicts = Verdicts(Tally(), lambda: 0.0)
    page_cache = PageCache(
        verdicts,
        SimpleNamespace(of_event=lambda _stack: (1,)),  # type: ignore[arg-type]
        SimpleNamespace(stack=lambda _frames: ("filemap_remove_folio+0x41",)),  # type: ignore[arg-type]
        Objects(),  # type: ignore[arg-type]
        oracle,  # type: ignore[arg-type]
        trails or Trails(),  # type: ignore[arg-type]
    )
    page_cache.read_event(of)
    page_cache.read_event(of)
    (finding,) = verdicts.take_new()
    assert verdicts.tally.checks["R3", Verdict.VIOLATED] == 2
    return finding


@pytest.mark.parametrize(
    ("of", "oracle", "summary"),
    [
        (
            event(),
            Oracle("FOUND_PRESENT"),
            "file folio 0xf000, page 5 of data\\n, leaves the page cache, and it is still mapped;"
            " mapper[42] has this page of the file at 0x70000000, and maps a page there",
        ),
        (
            event(hugetlb=1),
            Oracle("FOUND_NOTHING"),
            "hugetlb folio 0xf000, page 5 of data\\n, leaves the page cache, and it is still"
            " mapped; mapper[42] has this page of the file at 0x70000000, and maps nothing there"
            " by now",
        ),
        (
            event(),
            None,
            "file folio 0xf000, page 5 of data\\n, leaves the page cache, and it is still mapped;"
            " mm 0xaaaa has this page of the file at 0x70000000",
        ),
        (
            event(vma=0),
            Oracle("FOUND_PRESENT"),
            "file folio 0xf000, page 5, leaves the page cache, and it is still mapped; no VMA of"
            " this page was found",
        ),
        (
            event("LEFT_CACHE_UNLOCKED"),
            Oracle("FOUND_PRESENT"),
            "file folio 0xf000, page 5 of data\\n, leaves the page cache, and it is not locked",
        ),
        (
            event("UNMAPPED_UNLOCKED", hugetlb=1),
            Oracle("FOUND_NOTHING"),
            "hugetlb folio 0xf000, page 5 of data\\n, leaves the page cache, and it was unmapped"
            " before it was locked; mapper[42] had this page of the file at 0x70000000",
        ),
        (
            event("UNMAPPED_UNLOCKED", hugetlb=1),
            None,
            "hugetlb folio 0xf000, page 5 of data\\n, leaves the page cache, and it was unmapped"
            " before it was locked; mm 0xaaaa had this page of the file at 0x70000000",
        ),
    ],
)
def test_summary_says_what_is_wrong_and_who_maps_it(
    of: Event, oracle: Oracle | None, summary: str
) -> None:
    assert found(of, oracle).summary == summary


def test_entry_of_an_mm_that_is_gone_is_not_asked_for() -> None:
    assert "entry_now" not in found(event(), Oracle("FOUND_PRESENT", ())).evidence
    assert found(event(), Oracle("FOUND_PRESENT")).evidence["entry_now"] == {
        "comm": "mapper",
        "tgid": 42,
        "addr": hex(ADDR),
        "entry": "0x5001",
        "found": "present",
        "pfn": "0x5",
    }


def test_kinds_of_folios_and_of_wrongs_are_findings_of_their_own() -> None:
    kinds = ("LEFT_CACHE_UNLOCKED", "UNMAPPED_UNLOCKED")
    events = [event(), *(event(kind, hugetlb=hugetlb) for kind in kinds for hugetlb in (0, 1))]
    assert len({found(one).signature for one in events}) == 5


def test_trail_is_of_the_folio_and_of_the_files_tree() -> None:
    trails = Trails()
    found(event(), trails=trails)
    (asked,) = trails.asked
    assert (asked.since_ns, asked.folios, asked.locks) == (10 * 10**9, {FOLIO}, {LOCK})
    assert asked.ranges == [(ADDR, ADDR + 1)]
