"""The program at the removal of a folio from the page cache, and the VMA that it finds."""

from __future__ import annotations

import struct

import pytest

from tests.support.btf_blob import kernel_types
from tests.support.native import LAYOUTS
from tests.unit.probes.test_owners import Memory
from tracer.tables.counters import Counters
from tracer.tables.events import Event, Events

LOCKED, HEAD = 1 << 0, 1 << 6
HUGETLBFS_MAGIC, TMPFS_MAGIC = 0x958458F6, 0x01021994
FIRST = 0x7000_0000_0000
PAGE = 4096


class Cache(Memory):
    """A file with folios and VMAs, in memory that may be read."""

    def __init__(self, types: bytes = b"") -> None:
        super().__init__(types)
        params = LAYOUTS.structs["params"].pack(gate=1)
        self.native.maps["params"].update(struct.pack("<I", 0), params)
        inode, super_block = self.take(160), self.take(16)
        self.mapping, self.super_block = inode + self.offset("inode.i_data"), super_block
        self.set(inode, "inode.i_sb", super_block)
        self.set(self.mapping, "address_space.host", inode)
        self.magic(TMPFS_MAGIC)

    def magic(self, value: int) -> None:
        self.set(self.super_block, "super_block.s_magic", value)

    def folio(self, flags: int, mapcount: int, index: int = 0) -> int:
        """Return a folio of the file that is mapped so many times."""
        folio = self.take(128)
        self.set(folio, "folio.flags", flags)
        self.set(folio, "folio.mapping", self.mapping)
        self.set(folio, "folio.index", index)
        large = [name for name in ("_large_mapcount", "_total_mapcount") if self.has(name)]
        where = f"folio.{large[0]}" if flags & HEAD else "page._mapcount"
        self.set(folio, where, (mapcount - 1) % (1 << 32), 4)
        return folio

    def has(self, member: str) -> bool:
        return self._types.resolve(f"folio.{member}") is not None

    def vma(self, first: int, pages: int, left: int = 0, right: int = 0, last: int = 0) -> int:
        """Return a VMA of `pages` pages of the file from `first` on; last: of its subtree."""
        vma = self.take(160)
        self.set(vma, "vm_area_struct.vm_mm", 0xAAAA)
        self.set(vma, "vm_area_struct.vm_start", FIRST)
        self.set(vma, "vm_area_struct.vm_end", FIRST + pages * PAGE)
        self.set(vma, "vm_area_struct.vm_pgoff", first)
        node = vma + self.offset("vm_area_struct.shared.rb")
        self.set(node, "rb_node.rb_left", self.node(left))
        self.set(node, "rb_node.rb_right", self.node(right))
        self.set(vma, "vm_area_struct.shared.rb_subtree_last", last or first + pages - 1)
        return vma

    def node(self, vma: int) -> int:
        return vma and vma + self.offset("vm_area_struct.shared.rb")

    def root(self, vma: int) -> None:
        self.set(self.mapping, "address_space.i_mmap", self.node(vma))

    def remove(self, folio: int) -> dict[str, int]:
        """Remove the folio from the cache; return the checks by verdict."""
        before = self.counts()
        self.native.programs["mm_filemap_delete_from_page_cache"].run(folio)
        return {name: n - before[name] for name, n in self.counts().items() if n != before[name]}

    def counts(self) -> dict[str, int]:
        found = Counters(self.native.maps, LAYOUTS).read()
        return {
            verdict: found[f"R3_{verdict.upper()}"]
            for verdict in ("holds", "violated", "unverifiable")
        }

    def events(self) -> list[Event]:
        return [Events(LAYOUTS).decode(raw) for raw in self.native.events()]


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.mark.parametrize("size", [0, HEAD])
def test_locked_folio_that_nothing_maps_holds(cache: Cache, size: int) -> None:
    assert cache.remove(cache.folio(LOCKED | size, 0)) == {"holds": 1}
    assert cache.events() == []


@pytest.mark.parametrize("size", [0, HEAD])
def test_mapped_folio_is_violated_and_its_mapper_is_named(cache: Cache, size: int) -> None:
    cache.root(vma := cache.vma(10, 8))
    folio = cache.folio(LOCKED | size, 1, index=13)
    assert cache.remove(folio) == {"violated": 1}
    (event,) = cache.events()
    assert (event.kind, event.folio, event.mapping) == ("LEFT_CACHE_MAPPED", folio, cache.mapping)
    assert (event.mm, event.vma, event.addr) == (0xAAAA, vma, FIRST + 3 * PAGE)
    assert (event.index, event.hugetlb) == (13, 0)


def test_folio_that_is_not_locked_is_violated(cache: Cache) -> None:
    assert cache.remove(cache.folio(0, 0)) == {"violated": 1}
    assert [event.kind for event in cache.events()] == ["LEFT_CACHE_UNLOCKED"]


def test_folio_that_cannot_be_read_is_unverifiable(cache: Cache) -> None:
    assert cache.remove(0x10) == {"unverifiable": 1}


def test_closed_gate_counts_nothing(cache: Cache) -> None:
    cache.native.maps["params"].update(struct.pack("<I", 0), LAYOUTS.structs["params"].pack())
    assert cache.remove(cache.folio(LOCKED, 1)) == {}


@pytest.mark.parametrize(("index", "found"), [(3, 0), (12, 1), (25, 2), (31, None), (99, None)])
def test_interval_tree_is_searched_for_the_page(
    cache: Cache, index: int, found: int | None
) -> None:
    left, right = cache.vma(0, 5), cache.vma(20, 10)
    cache.root(top := cache.vma(10, 5, left, right, last=29))
    cache.remove(cache.folio(LOCKED, 1, index))
    (event,) = cache.events()
    assert event.vma == (0 if found is None else (left, top, right)[found])
    assert bool(event.addr) is (found is not None)


def test_search_ends_in_a_tree_that_is_a_ring(cache: Cache) -> None:
    ring = cache.vma(50, 1)
    cache.set(cache.node(ring), "rb_node.rb_left", cache.node(ring))
    cache.root(ring)
    cache.remove(cache.folio(LOCKED, 1, index=3))
    (event,) = cache.events()
    assert event.vma == 0


@pytest.mark.parametrize(
    ("magic", "mapcount", "checks"),
    [
        (HUGETLBFS_MAGIC, 0, {"holds": 1}),
        (HUGETLBFS_MAGIC, 1, {"violated": 1}),
        (TMPFS_MAGIC, 0, {"unverifiable": 1}),
        (TMPFS_MAGIC, 1, {"violated": 1}),
    ],
)
def test_large_folio_whose_pages_have_own_mapcounts_is_known_by_hugetlbfs_only(
    magic: int, mapcount: int, checks: dict[str, int]
) -> None:
    cache = Cache(kernel_types(mapcount_each=True))
    cache.magic(magic)
    assert cache.remove(cache.folio(LOCKED | HEAD, mapcount)) == checks
    assert all(event.hugetlb == (magic == HUGETLBFS_MAGIC) for event in cache.events())
