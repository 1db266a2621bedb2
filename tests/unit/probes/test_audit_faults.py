"""Each problem of enum audit_problem is put into an mm, and the state audit names it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.audited import BLACK, LOCKS, PAGE, PROBLEMS, Auditor, Kernel, Look, Vma, names
from tests.support.btf_blob import kernel_types
from tests.support.maple_tree import (
    ALL,
    GAP,
    LEAF,
    LEAF_META,
    LEAF_SLOT,
    META,
    PIVOT,
    SLOT,
    Range,
    with_gaps,
)

TYPES = kernel_types(False, True)
FREE_FRAME = 300
WILD = 0xDEAD000000000000
Accused = tuple[set[str], set[int]]
"""(the problems that may be named, the objects that may be accused: audit_doubt.at)."""


class Parts:
    """Parts of a tree that a fault is put into, of a shape that has them all."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.memory = kernel, kernel.memory
        self.nodes = {at: struct.unpack("<32Q", raw) for at, raw in kernel.built.nodes.items()}
        self.root = kernel.built.root & ~255
        self.kinds = {self.root: kernel.built.root >> 3 & 15}
        self.parents: dict[int, tuple[int, int]] = {}
        waiting = [self.root]
        while waiting:
            at = waiting.pop()
            if self.kinds[at] == LEAF:
                continue
            for i in range(self.end(at) + 1):
                child = self.nodes[at][SLOT + i]
                self.kinds[child & ~255] = child >> 3 & 15
                self.parents[child & ~255] = at, i
                waiting.append(child & ~255)
        self.leaves = [at for at, kind in self.kinds.items() if kind == LEAF]
        self.inner = [at for at in self.kinds if at not in self.leaves and at != self.root]

    def end(self, at: int) -> int:
        words = self.nodes[at]
        if self.kinds[at] != LEAF:
            return int(words[META] & 255)
        in_use = words[LEAF_META] < 256 and not words[PIVOT + 14]
        return int(words[LEAF_META] & 255) if in_use else 15

    def put(self, at: int, word: int, value: int) -> None:
        self.memory.put(at + 8 * word, value)

    def flip(self, at: int, word: int, bits: int) -> None:
        self.put(at, word, self.memory.get(at + 8 * word) ^ bits)

    def leaf_of(self, vma: Vma) -> tuple[int, int]:
        return next(
            (at, i)
            for at in self.leaves
            for i in range(self.end(at) + 1)
            if self.nodes[at][LEAF_SLOT + i] == vma.at
        )

    def small_leaf(self) -> int:
        """Return a leaf with unused slots and several in use."""
        return next(at for at in self.leaves if 3 < self.end(at) < 12)

    def inner_with(self, wanted: Callable[[list[int], int], bool]) -> tuple[int, int]:
        """Return (an inner node, its slot) whose gaps are as wanted."""
        for at in self.inner:
            gaps = list(self.nodes[at][GAP : GAP + self.end(at) + 1])
            for i in range(1, len(gaps) - 1):
                if wanted(gaps, i):
                    return at, i
        raise AssertionError("no such node")

    def anon(self, chains: int = 2) -> Vma:
        return next(vma for vma in self.kernel.own if len(vma.chain) >= chains)

    def filed(self) -> Vma:
        return next(vma for vma in self.kernel.own[5:] if vma.mapping)

    def plain(self) -> Vma:
        return next(vma for vma in self.kernel.own if not vma.chain)

    def touching(self) -> tuple[Vma, Vma]:
        """Return two VMAs in one leaf, the first of which ends where the second begins."""
        for left, right in zip(self.kernel.own, self.kernel.own[1:], strict=False):
            if left.last + 1 == right.first and self.leaf_of(left)[0] == self.leaf_of(right)[0]:
                return left, right
        raise AssertionError("no such VMAs")

    def rb(self, vma: Vma) -> int:
        return self.kernel.place(vma.at, "vm_area_struct.shared.rb")

    def leaf_with_child(self, depth: int = 2) -> tuple[int, list[int]]:
        """Return an rb_node of the mm in a mapping's tree, and those above it."""
        for vma in self.kernel.own:
            if not vma.mapping:
                continue
            rb, above = self.rb(vma), []
            up = self.memory.get(rb) & ~3
            while up:
                above.append(up)
                up = self.memory.get(up) & ~3
            if len(above) >= depth and not self.memory.get(rb + 8) | self.memory.get(rb + 16):
                return rb, above
        raise AssertionError("no such node")

    def below(self, rb: int) -> set[int]:
        """Return the rb_nodes of a subtree."""
        children = [self.memory.get(rb + 8), self.memory.get(rb + 16)]
        return {rb}.union(*(self.below(child) for child in children if child))


def unreadable_node(p: Parts) -> Accused:
    leaf = p.leaves[3]
    at, i = p.parents[leaf]
    p.put(at, SLOT + i, WILD | LEAF << 3 | 4)
    return {"NODE_UNREADABLE"}, {WILD}


def dead_node(p: Parts) -> Accused:
    leaf = p.leaves[3]
    p.put(leaf, 0, leaf)
    return {"NODE_DEAD"}, {leaf}


def stale_parent_pointer(p: Parts) -> Accused:
    leaf = p.leaves[3]
    p.flip(leaf, 0, 8)
    return {"NODE_PARENT"}, {leaf}


def type_of_another_level(p: Parts) -> Accused:
    leaf = p.leaves[3]
    at, i = p.parents[leaf]
    p.flip(at, SLOT + i, 2 << 3)
    return {"NODE_TYPE"}, {leaf}


def pivots_that_descend(p: Parts) -> Accused:
    at = next(at for at in p.inner if p.end(at) > 3)
    p.put(at, PIVOT + 1, p.nodes[at][PIVOT + 2] + PAGE)
    return {"NODE_PIVOT", "NODE_GAP"}, {at}


def pivot_of_inner_node_off_by_a_page(p: Parts) -> Accused:
    """The child's own last pivot says otherwise; its neighbour's first slot is longer."""
    for leaf in p.leaves:
        at, i = p.parents[leaf]
        if p.nodes[leaf][PIVOT + p.end(leaf)] and p.end(leaf) < 12 and i < p.end(at):
            p.put(at, PIVOT + i, p.nodes[at][PIVOT + i] - PAGE)
            following = p.nodes[at][SLOT + i + 1] & ~255
            vmas = {p.nodes[following][LEAF_SLOT], p.nodes[leaf][LEAF_SLOT + p.end(leaf)]}
            problems = {"NODE_END", "NODE_PIVOT", "NODE_GAP_OF_PARENT", "NODE_TWO_EMPTY"}
            return problems | {"VMA_RANGE"}, {leaf, following} | vmas
    raise AssertionError("no such node")


def missing_child(p: Parts) -> Accused:
    leaf = p.leaves[3]
    at, i = p.parents[leaf]
    p.put(at, SLOT + i, 0)
    return {"NODE_CHILD"}, {at}


def gap_larger_than_its_range(p: Parts) -> Accused:
    at, i = p.inner_with(lambda gaps, i: gaps[i] > 0)
    words = p.nodes[at]
    p.put(at, GAP + i, words[PIVOT + i] - words[PIVOT + i - 1] + PAGE)
    child = words[SLOT + i] & ~255
    return {"NODE_GAP", "NODE_GAP_SLOT", "NODE_GAP_OF_PARENT"}, {at, child}


def gap_too_large(p: Parts) -> Accused:
    at, i = p.inner_with(lambda gaps, i: 0 < gaps[i] < max(gaps) - PAGE)
    p.put(at, GAP + i, p.nodes[at][GAP + i] + PAGE)
    return {"NODE_GAP_OF_PARENT"}, {p.nodes[at][SLOT + i] & ~255}


def gap_too_small(p: Parts) -> Accused:
    at, i = p.inner_with(lambda gaps, i: 0 < gaps[i] < max(gaps))
    p.put(at, GAP + i, p.nodes[at][GAP + i] - PAGE)
    return {"NODE_GAP_OF_PARENT"}, {p.nodes[at][SLOT + i] & ~255}


def metadata_of_a_smaller_gap(p: Parts) -> Accused:
    at, i = p.inner_with(lambda gaps, i: gaps[i] < max(gaps))
    p.put(at, META, p.end(at) | i << 8)
    return {"NODE_GAP_SLOT"}, {at}


def entry_behind_the_end(p: Parts) -> Accused:
    leaf = p.small_leaf()
    p.put(leaf, LEAF_SLOT + p.end(leaf) + 1, p.kernel.own[0].at)
    return {"NODE_BEYOND_END"}, {leaf}


def pivot_behind_the_end(p: Parts) -> Accused:
    leaf = p.small_leaf()
    p.put(leaf, PIVOT + p.end(leaf) + 1, ALL >> 1)
    return {"NODE_BEYOND_END"}, {leaf}


def gap_behind_the_end(p: Parts) -> Accused:
    at = next(at for at in p.inner if p.end(at) < 8)
    p.put(at, GAP + p.end(at) + 1, PAGE)
    return {"NODE_BEYOND_END"}, {at}


def vma_missing_beside_an_empty_slot(p: Parts) -> Accused:
    for vma in p.kernel.own:
        leaf, i = p.leaf_of(vma)
        around = p.nodes[leaf][LEAF_SLOT + i - 1], p.nodes[leaf][LEAF_SLOT + (i + 1) % 16]
        if 0 < i < min(p.end(leaf), 14) and not around[0] and around[1]:
            p.put(leaf, LEAF_SLOT + i, 0)
            return {"NODE_TWO_EMPTY", "NODE_GAP_OF_PARENT", "MAP_COUNT"}, {leaf, p.kernel.mm}
    raise AssertionError("no such VMA")


def vma_missing_between_vmas(p: Parts) -> Accused:
    for vma in p.kernel.own:
        leaf, i = p.leaf_of(vma)
        at, n = p.parents[leaf]
        around = p.nodes[leaf][LEAF_SLOT + i - 1], p.nodes[leaf][LEAF_SLOT + (i + 1) % 16]
        longer = vma.pages * PAGE > p.nodes[at][GAP + n]
        if 0 < i < min(p.end(leaf), 14) and all(around) and longer:
            p.put(leaf, LEAF_SLOT + i, 0)
            return {"NODE_GAP_OF_PARENT", "MAP_COUNT"}, {leaf, p.kernel.mm}
    raise AssertionError("no such VMA")


def metadata_that_names_no_slot(p: Parts) -> Accused:
    at = p.inner[0]
    p.flip(at, META, 0x70)
    return {"NODE_END"}, {at}


def last_pivot_before_the_end(p: Parts) -> Accused:
    leaf = next(at for at in p.leaves if p.nodes[at][PIVOT + p.end(at)] and p.end(at) < 12)
    end = p.end(leaf)
    vma = p.nodes[leaf][LEAF_SLOT + end]
    p.put(leaf, PIVOT + end, p.nodes[leaf][PIVOT + end] - PAGE)
    return {"NODE_END", "NODE_PIVOT", "NODE_GAP_OF_PARENT", "VMA_RANGE"}, {leaf, vma}


def tree_higher_than_its_flags(p: Parts) -> Accused:
    p.kernel.set(p.kernel.tree, "maple_tree.ma_flags", 3, 4)
    return {"NODE_TOO_DEEP"}, {p.root}


def root_that_is_no_node(p: Parts) -> Accused:
    p.kernel.set(p.kernel.tree, "maple_tree.ma_root", p.kernel.own[0].at)
    return {"TREE_ROOT"}, {p.kernel.tree}


def map_count_off_by_one(p: Parts) -> Accused:
    p.kernel.set(p.kernel.mm, "mm_struct.map_count", len(p.kernel.own) + 1, 4)
    return {"MAP_COUNT"}, {p.kernel.mm}


def unreadable_vma(p: Parts) -> Accused:
    leaf, i = p.leaf_of(p.kernel.own[7])
    p.put(leaf, LEAF_SLOT + i, WILD)
    return {"VMA_UNREADABLE"}, {WILD}


def entry_that_is_no_vma(p: Parts) -> Accused:
    """XA_ZERO_ENTRY is the only number that a tree of an mm may hold."""
    leaf, i = p.leaf_of(p.kernel.own[7])
    p.put(leaf, LEAF_SLOT + i, 1034)
    return {"VMA_UNREADABLE"}, {1034}


def pivot_of_leaf_off_by_a_page(p: Parts) -> Accused:
    left, right = p.touching()
    leaf, i = p.leaf_of(left)
    p.put(leaf, PIVOT + i, left.last - PAGE if left.pages > 1 else left.last + PAGE)
    return {"VMA_RANGE"}, {left.at, right.at}


def start_of_vma_off_by_a_page(p: Parts) -> Accused:
    vma = next(vma for vma in p.kernel.own if vma.pages > 1)
    p.kernel.set(vma.at, "vm_area_struct.vm_start", vma.first + PAGE)
    return {"VMA_RANGE"}, {vma.at}


def end_of_vma_that_is_no_page(p: Parts) -> Accused:
    vma = p.kernel.own[4]
    p.kernel.set(vma.at, "vm_area_struct.vm_end", vma.last + 1 + 512)
    return {"VMA_RANGE"}, {vma.at}


def vma_of_another_mm(p: Parts) -> Accused:
    vma = p.kernel.own[4]
    p.kernel.set(vma.at, "vm_area_struct.vm_mm", p.kernel.mm + 4096)
    return {"VMA_MM"}, {vma.at}


def anon_vma_without_a_chain(p: Parts) -> Accused:
    vma = p.plain()
    p.kernel.set(vma.at, "vm_area_struct.anon_vma", p.kernel.anon_vmas[0][0])
    return {"VMA_ANON_VMA"}, {vma.at}


def chain_without_an_anon_vma(p: Parts) -> Accused:
    vma = p.anon()
    p.kernel.set(vma.at, "vm_area_struct.anon_vma", 0)
    return {"VMA_ANON_VMA"}, {vma.at}


def unreadable_chain(p: Parts) -> Accused:
    vma = p.anon()
    p.kernel.set(vma.chain[0], "anon_vma_chain.same_vma", WILD)
    return {"CHAIN_UNREADABLE"}, {WILD - p.kernel.offset("anon_vma_chain.same_vma")}


def chain_of_another_vma(p: Parts) -> Accused:
    chain = p.anon().chain[1]
    p.kernel.set(chain, "anon_vma_chain.vma", p.kernel.others[0].at)
    return {"CHAIN_VMA"}, {chain}


def chain_without_a_way_back(p: Parts) -> Accused:
    vma = p.anon()
    back = p.kernel.place(vma.chain[1], "anon_vma_chain.same_vma") + 8
    p.memory.put(back, p.memory.get(back) + 64)
    return {"CHAIN_LIST"}, {vma.chain[1]}


def chain_of_another_root(p: Parts) -> Accused:
    vma = p.anon()
    root = p.kernel.get(vma.anon_vma, "anon_vma.root")
    other = next(family[0] for family in p.kernel.anon_vmas if family[0] != root)
    entry = next(
        one for one in vma.chain if p.kernel.get(one, "anon_vma_chain.anon_vma") != vma.anon_vma
    )
    p.kernel.set(entry, "anon_vma_chain.anon_vma", other)
    return {"CHAIN_ROOT"}, {entry}


def own_anon_vma_not_in_the_chain(p: Parts) -> Accused:
    kernel = p.kernel
    for vma in kernel.own:
        linked = {kernel.get(one, "anon_vma_chain.anon_vma") for one in vma.chain}
        family = next((one for one in kernel.anon_vmas if linked & set(one)), [])
        for other in set(family) - linked:
            kernel.set(vma.at, "vm_area_struct.anon_vma", other)
            return {"CHAIN_LACKS_OWN"}, {vma.at}
    raise AssertionError("no such VMA")


def unreadable_interval(p: Parts) -> Accused:
    rb, _ = p.leaf_with_child()
    p.memory.put(rb, WILD)
    return {"INTERVAL_UNREADABLE"}, {WILD}


def interval_in_no_tree(p: Parts) -> Accused:
    rb, _ = p.leaf_with_child()
    p.memory.put(rb, rb)
    return {"INTERVAL_UNLINKED"}, {rb}


def interval_never_linked(p: Parts) -> Accused:
    rb, _ = p.leaf_with_child()
    p.memory.put(rb, 0)
    return {"INTERVAL_UNLINKED"}, {rb}


def wrong_end_of_a_subtree(p: Parts) -> Accused:
    rb, above = p.leaf_with_child()
    p.memory.put(rb + 24, p.memory.get(rb + 24) + 1)
    return {"INTERVAL_SUBTREE"}, {rb, above[0]}


def intervals_in_the_wrong_order(p: Parts) -> Accused:
    """The tree is right but for one key: that of the node above."""
    rb, above = p.leaf_with_child()
    is_left = p.memory.get(above[0] + 16) == rb
    vma = above[0] - p.kernel.offset("vm_area_struct.shared.rb")
    p.kernel.set(vma, "vm_area_struct.vm_pgoff", 0 if is_left else 1 << 30)
    return {"INTERVAL_ORDER", "INTERVAL_SUBTREE", "INTERVAL_COVER"}, set(p.below(above[-1]))


def interval_taken_out_of_its_tree(p: Parts) -> Accused:
    """What rb_erase() leaves of a leaf."""
    rb, above = p.leaf_with_child()
    side = 16 if p.memory.get(above[0] + 16) == rb else 8
    p.memory.put(above[0] + side, 0)
    return {"INTERVAL_NO_CHILD", "INTERVAL_SUBTREE", "INTERVAL_COVER"}, {rb, *above}


def subtree_that_ends_too_early(p: Parts) -> Accused:
    _, above = p.leaf_with_child()
    p.memory.put(above[-1] + 24, 0)
    return {"INTERVAL_COVER", "INTERVAL_SUBTREE"}, {above[-1]}


def interval_in_another_tree(p: Parts) -> Accused:
    kernel = p.kernel
    rb, above = p.leaf_with_child()
    mapping = next(vma.mapping for vma in kernel.own if p.rb(vma) == rb)
    file = kernel.memory.take(64)
    kernel.set(file, "file.f_mapping", next(one for one in kernel.mappings if one != mapping))
    vma = rb - kernel.offset("vm_area_struct.shared.rb")
    kernel.set(vma, "vm_area_struct.vm_file", file)
    return {"INTERVAL_TREE"}, {above[-1]}


def climb_without_an_end(p: Parts) -> Accused:
    """Two rb_nodes, each the left child of the other, with the same interval."""
    kernel = p.kernel
    rb, above = p.leaf_with_child()
    last = p.memory.get(rb + 24)
    up = above[0]
    for vma in kernel.own:
        if p.rb(vma) == rb:
            other = up - kernel.offset("vm_area_struct.shared.rb")
            kernel.set(other, "vm_area_struct.vm_pgoff", vma.pgoff)
    for here, there in ((rb, up), (up, rb)):
        for n, word in enumerate((there | BLACK, 0, there, last)):
            p.memory.put(here + 8 * n, word)
    return {"INTERVAL_TOO_DEEP", "INTERVAL_SUBTREE", "INTERVAL_ORDER", "INTERVAL_COVER",
            "INTERVAL_NO_CHILD"}, set()  # fmt: skip


def anon_page_with_another_index(p: Parts) -> Accused:
    vma = p.anon(1)
    for addr in range(vma.first, vma.last, PAGE):
        p.kernel.map_anon(vma, addr, FREE_FRAME)
    p.kernel.set(p.kernel.folio(FREE_FRAME), "folio.index", ALL >> 20)
    return {"PAGE_INDEX"}, {p.kernel.folio(FREE_FRAME)}


FAULTS = {
    "NODE_UNREADABLE": [unreadable_node],
    "NODE_DEAD": [dead_node],
    "NODE_PARENT": [stale_parent_pointer],
    "NODE_TYPE": [type_of_another_level],
    "NODE_PIVOT": [pivots_that_descend],
    "NODE_CHILD": [missing_child],
    "NODE_GAP": [gap_larger_than_its_range],
    "NODE_GAP_SLOT": [metadata_of_a_smaller_gap],
    "NODE_GAP_OF_PARENT": [gap_too_large, gap_too_small, vma_missing_between_vmas],
    "NODE_BEYOND_END": [entry_behind_the_end, pivot_behind_the_end, gap_behind_the_end],
    "NODE_TWO_EMPTY": [vma_missing_beside_an_empty_slot],
    "NODE_END": [
        metadata_that_names_no_slot,
        last_pivot_before_the_end,
        pivot_of_inner_node_off_by_a_page,
    ],
    "NODE_TOO_DEEP": [tree_higher_than_its_flags],
    "TREE_ROOT": [root_that_is_no_node],
    "MAP_COUNT": [map_count_off_by_one, vma_missing_between_vmas],
    "VMA_UNREADABLE": [unreadable_vma, entry_that_is_no_vma],
    "VMA_RANGE": [
        pivot_of_leaf_off_by_a_page,
        start_of_vma_off_by_a_page,
        end_of_vma_that_is_no_page,
    ],
    "VMA_MM": [vma_of_another_mm],
    "VMA_ANON_VMA": [anon_vma_without_a_chain, chain_without_an_anon_vma],
    "CHAIN_UNREADABLE": [unreadable_chain],
    "CHAIN_VMA": [chain_of_another_vma],
    "CHAIN_LIST": [chain_without_a_way_back],
    "CHAIN_ROOT": [chain_of_another_root],
    "CHAIN_LACKS_OWN": [own_anon_vma_not_in_the_chain],
    "INTERVAL_UNREADABLE": [unreadable_interval],
    "INTERVAL_UNLINKED": [interval_in_no_tree, interval_never_linked],
    "INTERVAL_SUBTREE": [wrong_end_of_a_subtree],
    "INTERVAL_ORDER": [intervals_in_the_wrong_order],
    "INTERVAL_NO_CHILD": [interval_taken_out_of_its_tree],
    "INTERVAL_COVER": [subtree_that_ends_too_early],
    "INTERVAL_TREE": [interval_in_another_tree],
    "INTERVAL_TOO_DEEP": [climb_without_an_end],
    "PAGE_INDEX": [anon_page_with_another_index],
}
CASES = [(problem, fault) for problem, faults in FAULTS.items() for fault in faults]


def faulty(fault: Callable[[Parts], Accused]) -> tuple[Kernel, Look, Accused]:
    kernel = Kernel(TYPES, Random(42), vmas=400)
    auditor = Auditor(kernel, TYPES)
    assert not auditor.look().doubts
    accused = fault(Parts(kernel))
    return kernel, auditor.look(), accused


def test_every_problem_has_a_fault() -> None:
    assert set(FAULTS) == set(PROBLEMS)


@pytest.mark.parametrize(("problem", "fault"), CASES, ids=[f"{p}-{f.__name__}" for p, f in CASES])
def test_fault_is_named_and_nothing_else_is_accused(
    problem: str, fault: Callable[[Parts], Accused]
) -> None:
    _, look, (allowed, objects) = faulty(fault)
    assert look.ended == "AUDIT_DONE"
    assert problem in look.problems
    assert look.problems <= allowed
    assert not objects or {doubt.at for doubt in look.doubts} <= objects
    assert look.believed == look.doubts, "no writer was there"
    for one in look.doubts:
        of_a_tree = any(name.startswith("INTERVAL_") for name in names(one.problems))
        assert (one.lock != LOCKS["AUDIT_MMAP_LOCK"]) is of_a_tree
        if problem == "INTERVAL_NO_CHILD":  # a leaf of a file's tree
            assert one.lock == LOCKS["AUDIT_I_MMAP_RWSEM"]


def test_stale_last_pivot_of_a_node_is_forgiven() -> None:
    """mas_validate_limits() does so: a store need not clear it."""
    kernel = Kernel(TYPES, Random(42), vmas=400)
    parts = Parts(kernel)
    at = next(at for at in parts.inner if parts.end(at) < 8)
    parts.put(at, PIVOT + 8, ALL >> 1)
    assert not Auditor(kernel, TYPES).look().doubts


def test_doubt_has_the_node_as_it_was_read_and_its_range() -> None:
    kernel, look, (_, objects) = faulty(gap_too_small)
    (doubt,) = look.doubts
    raw = kernel.memory.read(doubt.at, 256) or b""
    assert list(doubt.words) == list(struct.unpack("<32Q", raw))
    inside = [vma for vma in kernel.own if doubt.low <= vma.first <= doubt.high]
    assert inside
    assert all(vma.last <= doubt.high for vma in inside)
    gaps = [one for one in with_gaps(kernel.ranges()) if not one.vma]
    largest = max(
        min(gap.last, doubt.high) - max(gap.first, doubt.low) + 1
        for gap in gaps
        if gap.first <= doubt.high and gap.last >= doubt.low
    )
    assert (doubt.want, doubt.got) == (largest, largest - PAGE)
    assert doubt.vma == 0
    assert objects == {doubt.at}


def test_narrow_look_at_a_doubts_range_finds_it_again() -> None:
    for fault in (gap_too_small, stale_parent_pointer, start_of_vma_off_by_a_page):
        kernel, look, _ = faulty(fault)
        (doubt,) = look.doubts
        again = Auditor(kernel, TYPES).look(doubt.low, doubt.high)
        assert [vars(one) for one in again.doubts] == [vars(doubt)]
        assert again.state.nodes < look.state.nodes


def test_doubts_beyond_the_room_are_counted() -> None:
    kernel = Kernel(TYPES, Random(1), vmas=300)
    for vma in kernel.own:
        kernel.set(vma.at, "vm_area_struct.vm_mm", 0)
    look = Auditor(kernel, TYPES).look()
    assert look.state.doubts == 300
    assert len(look.doubts) == 128


@settings(max_examples=300)
@given(seed=st.integers(0, 7), word=st.integers(0, 31), bit=st.integers(0, 63), data=st.data())
def test_any_flipped_bit_of_a_node_is_judged_as_the_model_judges_it(
    seed: int, word: int, bit: int, data: st.DataObject
) -> None:
    kernel = Kernel(TYPES, Random(seed), vmas=60, files=0.2, anon=0.2)
    at = data.draw(st.sampled_from(sorted(kernel.built.nodes)))
    kernel.memory.put(at + 8 * word, kernel.memory.get(at + 8 * word) ^ 1 << bit)
    look, model = Auditor(kernel, TYPES).look(), kernel.check()
    found: dict[int, set[str]] = {}
    for doubt in look.doubts:
        if not doubt.vma and doubt.at != kernel.mm:
            found.setdefault(doubt.at, set()).update(names(doubt.problems))
    assert found == model.problems
    if not model.problems and model.ranges != kernel.ranges():
        assert look.problems, "the VMAs say otherwise"


def test_model_of_the_tree_returns_what_was_built() -> None:
    kernel = Kernel(TYPES, Random(8), vmas=100)
    assert kernel.check().ranges == [Range(v.at, v.first, v.last) for v in kernel.own]


def test_path_to_the_first_address_of_a_node_shows_what_is_wrong_with_it() -> None:
    """So a second look at an inner node costs nothing of what is below it."""
    random, seen = Random(9), 0
    for seed in range(3):
        kernel = Kernel(TYPES, Random(seed), vmas=250, files=0, anon=0)
        auditor, memory = Auditor(kernel, TYPES), kernel.memory
        for _ in range(60):
            at = random.choice([*kernel.built.nodes]) + 8 * random.randrange(32)
            right = memory.get(at)
            wrong = (0, right + 4096, right - 4096, right ^ 1 << random.randrange(48))
            memory.put(at, random.choice(wrong) & ALL)
            for doubt in auditor.look().doubts:
                if doubt.vma or "MAP_COUNT" in names(doubt.problems):
                    continue
                seen += 1
                again = auditor.look(max(doubt.low - 1, 0), doubt.low)
                assert again.state.nodes <= 8
                assert identity(doubt) in map(identity, again.doubts)
            memory.put(at, right)
    assert seen > 50


def identity(doubt: object) -> tuple[object, ...]:
    return tuple(getattr(doubt, name) for name in ("problems", "vma", "at", "want", "got"))


def test_map_count_is_not_compared_where_a_node_is_passed_over() -> None:
    kernel = Kernel(TYPES, Random(3), vmas=60, files=0.3, anon=0)
    auditor = Auditor(kernel, TYPES)
    assert not auditor.look().state.left_out
    child = kernel.memory.get((kernel.built.root & ~255) + 8 * SLOT) & ~255
    kernel.memory.put(child, child)
    look = auditor.look()
    assert look.problems == {"NODE_DEAD"}
    assert look.state.left_out
