"""A writer interferes with a look of the state audit, at every word that the look reads.

Whatever a look reports then, either its stamps show the writer, or the doubt is marked as raced;
and a later look that nobody disturbs reports nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest

from tests.support import maple_tree
from tests.support.audited import Auditor, Kernel, Look, Vma
from tests.support.btf_blob import kernel_types

TYPES = {
    "writers counted": kernel_types(),
    "mm_lock_seq": kernel_types(True),
    "seqcount": kernel_types(False, True),
    "PREEMPT_RT": kernel_types(realtime=True),
}
Store = tuple[int, int]
"""(address, value)."""


def difference(kernel: Kernel, before: bytes) -> list[Store]:
    """Return the words that differ from an earlier image of the memory, and undo them."""
    now = image(kernel)
    changed = [n for n in range(0, len(before), 8) if now[n : n + 8] != before[n : n + 8]]
    kernel.memory.write(kernel.memory.start, before)
    return [(kernel.memory.start + n, int.from_bytes(now[n : n + 8], "little")) for n in changed]


def image(kernel: Kernel) -> bytes:
    return kernel.memory.read(kernel.memory.start, 1 << 20) or b""


def counting(name: str, auditor: Auditor) -> tuple[list[Store], list[Store]]:
    """Return the stores of an mmap_lock's writer right after it locks and before it unlocks."""
    kernel = auditor.kernel
    if name in ("writers counted", "PREEMPT_RT"):
        return [(auditor.writes_at(), 1)], []
    at = kernel.place(kernel.mm, "mm_struct.mm_lock_seq")
    rest = kernel.memory.get(at) & ~0xFFFFFFFF
    if name == "mm_lock_seq":
        return [], [(at, rest | 1)]
    return [(at, rest | 1)], [(at, rest | 2)]


def under_mmap_lock(name: str, auditor: Auditor, stores: Sequence[Store]) -> list[Store]:
    kernel = auditor.kernel
    count = kernel.count_of(kernel.lock)
    after_lock, before_unlock = counting(name, auditor)
    return [
        (count, kernel.writer),
        *after_lock,
        *stores,
        *before_unlock,
        (count, kernel.free),
    ]


def rebuilt(kernel: Kernel, own: list[Vma]) -> list[Store]:
    """Return the stores of a change that leaves the mm with these VMAs: all nodes are new.

    The old nodes die, as those of a store into a maple tree do.
    """
    before = image(kernel)
    old = list(kernel.built.nodes)
    kernel.own = own
    kernel.built = maple_tree.build(kernel.ranges(), kernel.tree, kernel.memory.node, kernel.random)
    kernel.write_tree()
    for at in old:
        kernel.memory.put(at, at)
    kernel.link()
    kernel.set(kernel.mm, "mm_struct.map_count", len(own), 4)
    return difference(kernel, before)


def unmapped(kernel: Kernel) -> list[Store]:
    """Remove VMAs, with their nodes in the interval trees."""
    gone = kernel.own[2:5]
    return rebuilt(kernel, [vma for vma in kernel.own if vma not in gone])


def mapped(kernel: Kernel) -> list[Store]:
    """Add a VMA behind the others, of a file and with an anon_vma."""
    last = kernel.own[-1].last
    vma = kernel.vma(last + 1, last + 8192, kernel.mappings[1])
    kernel.add_anon(vma)
    return rebuilt(kernel, [*kernel.own, vma])


def shrunk(kernel: Kernel) -> list[Store]:
    """Move a VMA's end, in place: the VMA first, then its trees, then its pivot and the gaps."""
    vma = next(vma for vma in kernel.own if vma.pages > 2)
    before = image(kernel)
    vma.last -= 8192
    kernel.set(vma.at, "vm_area_struct.vm_end", vma.last + 1)
    stores = difference(kernel, before)
    return stores + rebuilt(kernel, kernel.own)


CHANGES = (unmapped, mapped, shrunk)


def small(types: bytes, seed: int, vmas: int = 9) -> tuple[Kernel, Auditor]:
    kernel = Kernel(types, Random(seed), vmas=vmas, files=0.4, anon=0.4)
    return kernel, Auditor(kernel, types)


def at_every_word(auditor: Auditor, stores: Sequence[Store]) -> Iterator[tuple[str, Look]]:
    """Look at the mm while a writer interferes, in many ways; yield (which one, the look).

    at once: all stores between two words. along: one store a word. stalled: the writer stops after
    each number of its stores, until the look has ended. cut: the first or last few stores are
    made between two stamps of the look, the others in the middle of it.
    """
    kernel = auditor.kernel
    before = image(kernel)
    counted = auditor.writes_at()
    assert not auditor.look().doubts
    words = auditor.words_read
    never = 1 << 60
    plans: list[tuple[str, list[int]]] = []
    for n in range(words + 1):
        plans.append((f"at once, word {n}", [n] * len(stores)))
        plans.append((f"along, word {n}", [n + k for k in range(len(stores))]))
    for k in range(len(stores) + 1):
        n = words * k // len(stores)
        for start in (0, n // 2, n):
            when = [start] * k + [never] * (len(stores) - k)
            plans.append((f"stalled after {k} stores from word {start} on", when))
    stamps, middle = 14, range(words // 8, words, words // 8)
    for few in (1, 2, 3):
        for n in range(stamps):
            for m in middle:
                first = [n] * few + [m] * (len(stores) - few)
                last = [m] * (len(stores) - few) + [words - n] * few
                plans.append((f"cut: {few} stores before word {n}, the others before {m}", first))
                plans.append((f"cut: {few} stores before word {words - n}, after {m}", last))
    for name, when in plans:
        kernel.memory.write(kernel.memory.start, before)
        ctypes.c_uint64.from_address(counted).value = 0
        rows = ((at_word, *store) for at_word, store in zip(when, stores, strict=True))
        auditor.interfere(rows)
        yield name, auditor.look()
        auditor.finish()
        quiet = auditor.look()
        assert (quiet.problems, quiet.undisturbed) == (set(), True), name
    kernel.memory.write(kernel.memory.start, before)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_writer_of_the_mm_shows_in_the_stamps_of_each_look_with_a_doubt(
    name: str, change: Callable[[Kernel], list[Store]]
) -> None:
    kernel, auditor = small(TYPES[name], 4)
    stores = under_mmap_lock(name, auditor, change(kernel))
    doubted = 0
    for how, look in at_every_word(auditor, stores):
        doubted += bool(look.doubts)
        assert look.ended == "AUDIT_DONE"
        assert not look.undisturbed or not look.doubts, (how, look.problems)
    assert doubted > 100, "the writer does interfere"


@pytest.mark.parametrize("name", TYPES)
def test_writer_of_a_mappings_tree_leaves_no_doubt_that_is_not_raced(name: str) -> None:
    """Another mm maps the file: nothing of ours shows it but the i_mmap_rwsem."""
    kernel, auditor = small(TYPES[name], 4, vmas=7)
    mapping = next(vma.mapping for vma in kernel.own if vma.mapping)
    kernel.others += [kernel.vma(0, 0x3FFF, mapping, mm=kernel.mm + 4096) for _ in range(9)]
    kernel.link()
    before = image(kernel)
    kernel.others += [kernel.vma(0, 0x7FFF, mapping, mm=kernel.mm + 4096)]
    kernel.link(mapping)
    lock = kernel.count_of(kernel.place(mapping, "address_space.i_mmap_rwsem"))
    stores = [(lock, kernel.writer), *difference(kernel, before), (lock, kernel.free)]
    seen = raced = 0
    for how, look in at_every_word(auditor, stores):
        assert (look.ended, look.undisturbed) == ("AUDIT_DONE", True)
        assert not look.believed, (how, look.problems)
        assert all(name.startswith("INTERVAL") for name in look.problems), look.problems
        seen += bool(look.doubts)
        raced += bool(look.state.raced_climbs)
    assert seen > 10
    assert raced > seen, "a second climb finds the tree in order where the writer has left"


@pytest.mark.parametrize("name", TYPES)
def test_first_anon_vma_of_a_vma_leaves_no_doubt_that_is_not_raced(name: str) -> None:
    """__anon_vma_prepare() has the mmap_lock for read, and the root's rwsem for write."""
    kernel, auditor = small(TYPES[name], 4)
    vma = next(vma for vma in kernel.own if not vma.anon_vma)
    anon_vma = kernel.anon_vmas[0][0]
    before = image(kernel)
    entry = kernel.memory.take(64)
    head = kernel.place(vma.at, "vm_area_struct.anon_vma_chain")
    links = kernel.place(entry, "anon_vma_chain.same_vma")
    linked = [
        (kernel.place(vma.at, "vm_area_struct.anon_vma"), anon_vma),
        (kernel.place(entry, "anon_vma_chain.vma"), vma.at),
        (kernel.place(entry, "anon_vma_chain.anon_vma"), anon_vma),
        (head + 8, links),
        (links, head),
        (links + 8, head),
        (head, links),
    ]
    for at, value in linked:
        kernel.memory.put(at, value)
    vma.anon_vma = anon_vma
    vma.chain.append(entry)
    kernel.link(anon_vma)
    changed = [store for store in difference(kernel, before) if store not in linked]
    mmap_lock = kernel.count_of(kernel.lock)
    lock = kernel.count_of(kernel.place(anon_vma, "anon_vma.rwsem"))
    taken, released = (lock, kernel.writer), (lock, kernel.free)
    stores = [(mmap_lock, kernel.reader), taken, *linked, *changed, released]
    stores.append((mmap_lock, kernel.free))
    problems = set[str]()
    for how, look in at_every_word(auditor, stores):
        assert (look.ended, look.undisturbed) == ("AUDIT_DONE", True)
        assert not look.believed, (how, look.problems)
        problems |= look.problems
    assert "VMA_ANON_VMA" in problems, "it is met in the middle"
