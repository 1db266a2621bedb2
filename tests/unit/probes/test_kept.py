"""V6: what addresses have when a merge, a split or a move ends, compared with before."""

from __future__ import annotations

import ctypes
from random import Random

import pytest

from tests.support.box import ENOMEM_POINTER, FENTRY, KPROBE, Box, Vma, box
from tests.support.maple_tree import Range, build

each_method = pytest.mark.parametrize("methods", [FENTRY, KPROBE], ids=["fentry", "kprobe"])
SOFTDIRTY, MAYBE_GUARD, LOCKED, ACCOUNT, UFFD_MISSING = 0x08000000, 0x800, 0x2000, 0x100000, 0x200
FLAGS = 0x73
OTHER = {
    "flags": ("vm_flags", FLAGS | LOCKED),
    "uffd": ("vm_userfaultfd_ctx.ctx", 0x1000),
    "policy": ("vm_policy", 0),
    "file": ("vm_file", 0x1000),
    "name": ("anon_name", 0),
}
"""What is lost -> the member that changes, and its new value; 0: an object of its own."""


def plant(b: Box, *vmas: Vma, random: Random | None = None) -> None:
    """Put the VMAs into the mm's maple tree, whose mmap_lock this task holds for write."""

    def take(size: int) -> int:
        return (b.take(2 * size) + size - 1) & -size

    ranges = [
        Range(vma.at, member(b, vma, "vm_start"), member(b, vma, "vm_end") - 1) for vma in vmas
    ]
    tree = b.mm + b.offset("mm_struct.mm_mt")
    made = build(sorted(ranges, key=lambda one: one.first), tree, take, random or Random(1))
    for at, words in made.nodes.items():
        ctypes.memmove(at, words, len(words))
    b.set(b.mm, "mm_struct.mm_mt.ma_root", made.root)
    b.held(b.mmap_lock)


def member(b: Box, vma: Vma, name: str) -> int:
    return ctypes.c_uint64.from_address(vma.at + b.offset(f"vm_area_struct.{name}")).value


def policy(b: Box, mode: int = 2) -> int:
    at = b.take(48)
    b.set(at, "mempolicy.mode", mode)
    b.set(at, "mempolicy.nodes", 3)
    return at


def name(b: Box, text: bytes = b"heap of a service") -> int:
    at = b.take(128)
    ctypes.memmove(at + 4, text, len(text))
    return at


def lose(b: Box, vma: Vma, what: str) -> None:
    path, value = OTHER[what]
    made = {"policy": policy(b, mode=3), "name": name(b, b"another")}
    b.set(vma.at, f"vm_area_struct.{path}", value or made[what])


def asked(b: Box, middle: Vma | None, start: int, end: int, **members: int) -> int:
    """Return a struct vma_merge_struct."""
    at = b.take(80)
    given = {"mm": b.mm, "start": start, "end": end, "vm_flags": FLAGS, "pgoff": start >> 12}
    for member_name, value in (given | members).items():
        b.set(at, f"vma_merge_struct.{member_name}", value)
    b.set(at, "vma_merge_struct.middle", middle.at if middle else 0)
    return at


def three(b: Box) -> tuple[Vma, Vma, Vma]:
    """Return three VMAs side by side; the outer ones have a policy and a name."""
    made = [b.vma(at, at + 0x4000, flags=FLAGS) for at in (0x10000, 0x14000, 0x18000)]
    for vma in made:
        b.change(vma, vm_policy=policy(b), anon_name=name(b))
    plant(b, *made)
    return made[0], made[1], made[2]


def word(b: Box) -> str:
    """Return the word of V6 in the only protocol; empty where it has none."""
    (line,) = b.seen()
    head = line.partition("[")[2].partition("]")[0].split()
    return " ".join(one for one in head if one.startswith("kept"))


@each_method
@pytest.mark.parametrize("which", [0, 2], ids=["before", "behind"])
@pytest.mark.parametrize("what", OTHER)
def test_neighbour_that_loses_something_is_marked(
    methods: tuple[str, str], which: int, what: str
) -> None:
    b = box(methods)
    vmas = three(b)
    with b.call("vma_modify", asked(b, vmas[1], 0x14000, 0x18000), returned=vmas[1].at):
        lose(b, vmas[which], what)
    assert word(b) == f"kept={what}"


@pytest.mark.parametrize(
    ("member_name", "value"),
    [
        ("vm_flags", FLAGS | SOFTDIRTY),
        ("vm_flags", FLAGS | MAYBE_GUARD),
        ("anon_vma", 0x1000),
        ("vm_start", 0xF000),
    ],
)
def test_neighbour_may_change_what_merged_vmas_may_differ_in(member_name: str, value: int) -> None:
    b = box()
    before, middle, _behind = three(b)
    with b.call("vma_modify", asked(b, middle, 0x14000, 0x18000), returned=middle.at):
        b.change(before, **{member_name: value})
        if member_name == "vm_start":
            b.change(before, vm_pgoff=value >> 12)
    assert word(b) == "kept"


def test_equal_policy_and_name_at_another_address_are_kept() -> None:
    b = box()
    before, middle, _behind = three(b)
    with b.call("vma_modify", asked(b, middle, 0x14000, 0x18000), returned=middle.at):
        b.change(before, vm_policy=policy(b), anon_name=name(b))
    assert word(b) == "kept"


@pytest.mark.parametrize(
    ("mode", "flags", "member_name", "expected"),
    [
        (2, 0, "nodes", "kept=policy"),
        (4, 0, "nodes", "kept"),  # MPOL_LOCAL has none: they are not set
        (2, 0, "w", "kept"),
        (2, 0x8000, "w", "kept=policy"),  # MPOL_F_STATIC_NODES: the caller's own nodes
        (2, 0, "home_node", "kept=policy"),
        (2, 0, "mode", "kept=policy"),
        (2, 0, "flags", "kept=policy"),
    ],
)
def test_policies_are_equal_where_mpol_equal_says_so(
    mode: int, flags: int, member_name: str, expected: str
) -> None:
    b = box()
    before, middle, _behind = three(b)
    at = policy(b)
    members = ctypes.c_uint16 * 2
    members.from_address(at + b.offset("mempolicy.mode"))[:] = [mode, flags]
    b.change(before, vm_policy=at)
    with b.call("vma_modify", asked(b, middle, 0x14000, 0x18000), returned=middle.at):
        ctypes.c_uint8.from_address(at + b.offset(f"mempolicy.{member_name}")).value ^= 1
    assert word(b) == expected


def test_neighbour_that_is_unmapped_is_marked() -> None:
    b = box()
    before, middle, behind = three(b)
    with b.call("vma_modify", asked(b, middle, 0x14000, 0x18000), returned=middle.at):
        plant(b, middle, behind)
    assert word(b) == "kept=range"
    assert before


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0x14000, 0x18000, "kept"),
        (0x15000, 0x16000, "kept=range"),  # the VMA was to be split, and was not
        (0x13000, 0x18000, "kept=range"),  # mseal_apply() of 6.17 to 6.18.20
        (0x14000, 0x19000, "kept=range"),
        (0x18000, 0x14000, "kept=range"),
    ],
)
def test_range_that_is_not_the_vmas_own_is_marked(start: int, end: int, expected: str) -> None:
    b = box()
    _before, middle, _behind = three(b)
    with b.call("vma_modify", asked(b, middle, start, end), returned=middle.at):
        pass
    assert word(b) == expected


@each_method
@pytest.mark.parametrize("what", ["", *OTHER])
def test_range_that_a_neighbour_takes_in_has_what_was_asked_for(
    methods: tuple[str, str], what: str
) -> None:
    """The VMA before takes the range in; it has what was asked for, or one thing else."""
    b = box(methods)
    before, middle, behind = three(b)
    members = {"policy": policy(b), "anon_name": name(b)}
    with b.call("vma_modify", asked(b, middle, 0x14000, 0x18000, **members), returned=before.at):
        b.change(before, vm_end=0x18000)
        plant(b, before, behind)
        if what:
            lose(b, before, what)
    assert word(b) == (f"kept={what}" if what else "kept")


def test_merge_of_a_range_with_nothing_beside_it_has_no_word() -> None:
    b = box()
    plant(b, b.vma(0x50000, 0x54000))
    with b.call("vma_merge_new_range", asked(b, None, 0x14000, 0x18000)):
        pass
    assert word(b) == ""


def test_nothing_is_compared_without_the_mmap_lock() -> None:
    b = box()
    vmas = three(b)
    b.free(b.mmap_lock)
    with b.call("vma_modify", asked(b, vmas[1], 0x14000, 0x18000), returned=vmas[1].at):
        lose(b, vmas[0], "uffd")
    assert word(b) == ""


@pytest.mark.parametrize("returned", [0, ENOMEM_POINTER])
def test_merge_that_fails_must_keep_its_neighbours_too(returned: int) -> None:
    b = box()
    vmas = three(b)
    with b.call("vma_modify", asked(b, vmas[1], 0x14000, 0x18000), returned=returned):
        lose(b, vmas[2], "policy")
    assert word(b) == "kept=policy"


@pytest.mark.parametrize("below", [0, 1])
def test_half_of_a_split_that_loses_something_is_marked(below: int) -> None:
    b = box()
    vma = b.vma(0x10000, 0x18000, flags=FLAGS)
    plant(b, vma)
    for what in (None, "flags"):
        half = b.vma(0x10000, 0x14000, flags=FLAGS) if below else b.vma(0x14000, 0x18000)
        b.change(half, vm_flags=FLAGS | LOCKED if what else FLAGS)
        with b.call("__split_vma", 0, vma.at, 0x14000, below):
            if below:
                b.change(vma, vm_start=0x14000, vm_pgoff=0x14)
            else:
                b.change(vma, vm_end=0x14000)
            plant(b, half, vma)
        b.change(vma, vm_start=0x10000, vm_end=0x18000, vm_pgoff=0x10)
        plant(b, vma)
    assert b.seen() == {
        "__split_vma[moved mmap:w ok kept]": 1,
        "__split_vma[moved mmap:w ok kept=flags]": 1,
    }


def moved(
    b: Box, source: Vma, to: Vma, *, start: int, length: int, new: int, leave: bool = False
) -> None:
    """Run move_vma() for a part of the source; `to` has it afterwards.

    leave: the source stays mapped, as MREMAP_DONTUNMAP has it.
    """
    args = (source.at, start, length, length, new, 0, 0, 0)
    with b.call("move_vma", *args, returned=new):
        rest = []
        if not leave:
            low, high = member(b, source, "vm_start"), member(b, source, "vm_end")
            flags = member(b, source, "vm_flags")
            parts = [(low, start), (start + length, high)]
            rest = [b.vma(*part, flags=flags) for part in parts if part[0] < part[1]]
        plant(b, to, *(rest or [source] if leave else rest))


@each_method
def test_moved_range_has_what_its_source_had_but_for_the_userfaultfd(
    methods: tuple[str, str],
) -> None:
    changes: list[dict[str, int]] = [
        {},
        {"vm_flags": FLAGS | SOFTDIRTY},
        {"vm_flags": FLAGS | ACCOUNT},
    ]
    seen: dict[str, int] = {}
    for change in changes:
        b = box(methods)
        source = b.vma(0x10000, 0x18000, flags=FLAGS | UFFD_MISSING)
        b.set(source.at, "vm_area_struct.vm_userfaultfd_ctx.ctx", 0x7000)
        to = b.vma(0x90000, 0x94000, flags=FLAGS)
        b.change(to, vm_pgoff=0x12, **change)
        plant(b, source)
        moved(b, source, to, start=0x12000, length=0x4000, new=0x90000, leave=True)
        for line in b.seen():
            seen[line] = seen.get(line, 0) + 1
    assert seen == {"move_vma[mmap:w kept]": 2, "move_vma[mmap:w kept=flags]": 1}


@each_method
@pytest.mark.parametrize(
    ("faulted", "index", "expected"),
    [(True, 0x12, "kept"), (True, 0x90, "kept=file"), (False, 0x12, "kept"), (False, 0x90, "kept")],
)
def test_moved_range_keeps_the_index_of_its_pages_if_it_has_any(
    methods: tuple[str, str], faulted: bool, index: int, expected: str
) -> None:
    """copy_vma() gives anonymous memory that was never touched the index of its new address."""
    b = box(methods)
    source, to = b.vma(0x10000, 0x18000, flags=FLAGS), b.vma(0x90000, 0x94000, flags=FLAGS)
    b.change(to, vm_pgoff=index)
    for vma in (source, to):
        b.change(vma, anon_vma=b.anon_vma() if faulted else 0)
    plant(b, source)
    moved(b, source, to, start=0x12000, length=0x4000, new=0x90000, leave=True)
    assert word(b) == expected


@pytest.mark.parametrize(("emptied", "expected"), [(True, "kept"), (False, "kept=file")])
def test_source_that_is_emptied_may_take_the_index_of_its_address(
    emptied: bool, expected: str
) -> None:
    """dontunmap_complete() of 7.2.12 and 7.3.4 sets vm_pgoff where it takes the anon_vma away."""
    b = box()
    source, to = b.vma(0x10000, 0x14000, flags=FLAGS), b.vma(0x90000, 0x94000, flags=FLAGS)
    for vma in (source, to):
        b.change(vma, vm_pgoff=0x700, anon_vma=b.anon_vma())
    plant(b, source)
    args = (source.at, 0x10000, 0x4000, 0x4000, 0x90000, 0, 0, 0)
    with b.call("move_vma", *args, returned=0x90000):
        b.change(source, vm_pgoff=0x10, **({"anon_vma": 0} if emptied else {}))
        plant(b, source, to)
    assert word(b) == expected


def test_neighbour_of_a_moved_range_that_loses_its_userfaultfd_is_marked() -> None:
    """mremap_userfaultfd_prep() ends it for the whole VMA that the copy was merged with."""
    b = box()
    home = b.vma(0x90000, 0x94000, flags=FLAGS | UFFD_MISSING)
    b.set(home.at, "vm_area_struct.vm_userfaultfd_ctx.ctx", 0x7000)
    source = b.vma(0x10000, 0x14000, flags=FLAGS)
    plant(b, home, source)
    with b.call("move_vma", source.at, 0x10000, 0x4000, 0x4000, 0x94000, 0, 0, 0, returned=0x94000):
        b.change(home, vm_end=0x98000, vm_flags=FLAGS)
        b.set(home.at, "vm_area_struct.vm_userfaultfd_ctx.ctx", 0)
        plant(b, home)
    assert word(b) == "kept=uffd"


@pytest.mark.parametrize(("flags", "expected"), [(FLAGS, "kept"), (FLAGS | ACCOUNT, "kept=flags")])
def test_rest_of_the_source_may_lose_only_its_lock_in_memory(flags: int, expected: str) -> None:
    """MREMAP_DONTUNMAP ends mlock() of the whole VMA, and up to 6.17 VM_ACCOUNT, too."""
    b = box()
    source = b.vma(0x10000, 0x18000, flags=flags | LOCKED)
    to = b.vma(0x90000, 0x94000, flags=flags | LOCKED)
    plant(b, source)
    args = (source.at, 0x12000, 0x4000, 0x4000, 0x90000, 0, 0, 0)
    with b.call("move_vma", *args, returned=0x90000):
        b.change(source, vm_flags=FLAGS)
        plant(b, source, to)
    assert word(b) == expected


def test_range_moved_beside_its_own_source_is_no_neighbour_of_it() -> None:
    """What is before the new range moves itself, and may be unmapped."""
    b = box()
    source, to = b.vma(0x10000, 0x14000, flags=FLAGS), b.vma(0x14000, 0x18000, flags=FLAGS)
    plant(b, source)
    with b.call("move_vma", source.at, 0x10000, 0x4000, 0x4000, 0x14000, 0, 0, 0, returned=0x14000):
        plant(b, to)
    assert word(b) == "kept"


def test_moved_range_that_is_not_there_is_marked() -> None:
    b = box()
    source = b.vma(0x10000, 0x14000, flags=FLAGS)
    plant(b, source)
    with b.call("move_vma", source.at, 0x10000, 0x4000, 0x4000, 0x54000, 0, 0, 0, returned=0x54000):
        pass
    assert word(b) == "kept=range"


def test_merge_inside_a_move_keeps_things_of_its_own() -> None:
    b = box()
    home = b.vma(0x90000, 0x94000, flags=FLAGS)
    source = b.vma(0x10000, 0x14000, flags=FLAGS)
    plant(b, home, source)
    args = (source.at, 0x10000, 0x4000, 0x4000, 0x94000, 0, 0, 0)
    with b.call("move_vma", *args, returned=0x94000):
        with b.call("vma_merge_new_range", asked(b, None, 0x94000, 0x98000), returned=home.at):
            b.change(home, vm_end=0x98000)
        plant(b, home)
        lose(b, home, "policy")
    assert b.seen() == {
        "vma_merge_new_range[mmap:w kept]": 1,
        "move_vma[mmap:w kept=policy]  vma_merge_new_range()": 1,
    }


@pytest.mark.parametrize("what", ["", "uffd"])
def test_split_inside_a_merge_is_compared_by_the_merge(what: str) -> None:
    b = box()
    before, middle, behind = three(b)
    with (
        b.call("vma_modify", asked(b, middle, 0x16000, 0x18000), returned=middle.at),
        b.call("__split_vma", 0, middle.at, 0x16000, 1),
    ):
        half = b.vma(0x14000, 0x16000, flags=FLAGS)
        for path in ("vm_policy", "anon_name"):
            b.set(half.at, f"vm_area_struct.{path}", member(b, middle, path))
        b.change(middle, vm_start=0x16000, vm_pgoff=0x16)
        plant(b, before, half, middle, behind)
        if what:
            lose(b, half, what)
    assert b.seen() == {
        "__split_vma[moved mmap:w ok]": 1,
        f"vma_modify[mmap:w kept{what and '=' + what}]  __split_vma()": 1,
    }


def test_address_is_found_in_trees_of_any_shape() -> None:
    """Of all VMAs only those beside the range are compared."""
    random = Random(6)
    for count in (1, 2, 15, 16, 17, 60, 300):
        b = box()
        low, vmas = 0x10000, list[Vma]()
        for _ in range(count):
            low += random.choice((0, 0, 0x1000, 0x40000))
            high = low + random.randint(1, 9) * 0x2000
            vmas.append(b.vma(low, high, flags=FLAGS))
            low = high
        plant(b, *vmas, random=random)
        for at in {0, count - 1, random.randrange(count), random.randrange(count)}:
            vma = vmas[at]
            middle = member(b, vma, "vm_start") + 0x1000
            for touched in (at, (at + 1) % count):
                with b.call("__split_vma", 0, vma.at, middle, 0):
                    b.change(vmas[touched], vm_flags=FLAGS | LOCKED)
                b.change(vmas[touched], vm_flags=FLAGS)
        found = b.seen()
        lost = sum(times for line, times in found.items() if "kept=flags" in line)
        kept = sum(times for line, times in found.items() if "kept]" in line)
        tried = lost + kept
        assert lost == (tried if count == 1 else tried // 2), (count, found)
        assert sum(found.values()) == tried
