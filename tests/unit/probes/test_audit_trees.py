"""The state audit over healthy mms of random shape, run natively."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.audited import Auditor, Kernel
from tests.support.btf_blob import kernel_types
from tests.support.maple_tree import ALL
from tests.support.native import LAYOUTS

RT_MUTEX_HAS_WAITERS = 1  # of rt_mutex_base.owner, kernel/locking/rtmutex_common.h
TYPES = {
    "writers counted": kernel_types(),  # 6.1: no mm_lock_seq
    "mm_lock_seq": kernel_types(True),  # 6.4 to 6.13
    "seqcount": kernel_types(False, True),  # 7.3: also __vm_anon_pgoff
    "PREEMPT_RT": kernel_types(realtime=True),
}
SHAPES = st.fixed_dictionaries(
    {
        "vmas": st.integers(1, 150),
        "touching": st.sampled_from((0.0, 0.5, 1.0)),
        "files": st.sampled_from((0.0, 0.5, 1.0)),
        "anon": st.sampled_from((0.0, 0.6, 1.0)),
    }
)
Made = TypeVar("Made")
slow = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=TYPES)
def types(request: pytest.FixtureRequest) -> bytes:
    return TYPES[request.param]


@slow
@given(seed=st.integers(0, 1 << 32), shape=SHAPES)
def test_healthy_mm_has_no_doubt_and_every_part_is_counted(
    types: bytes, seed: int, shape: dict[str, float]
) -> None:
    kernel = Kernel(types, Random(seed), **shape)  # type: ignore[arg-type]
    look = Auditor(kernel, types).look()
    assert (look.ended, look.problems, look.owned) == ("AUDIT_DONE", set(), [])
    assert look.undisturbed
    s = look.state
    assert s.nodes == len(kernel.built.nodes) == kernel.check().nodes
    assert s.vmas == len(kernel.own) == s.map_count_before == s.map_count_after
    assert s.files == sum(bool(vma.mapping) for vma in kernel.own)
    assert s.chain_entries == sum(len(vma.chain) for vma in kernel.own)
    assert s.climbs == s.files + s.chain_entries
    assert s.longest == max(len(vma.chain) for vma in kernel.own)
    assert (s.id_before, s.id_after, s.users_before, s.users_after) == (77, 77, 1, 1)


@slow
@given(seed=st.integers(0, 1 << 32), shape=SHAPES, most=st.integers(1, 40))
def test_slices_cover_each_vma_once(
    types: bytes, seed: int, shape: dict[str, float], most: int
) -> None:
    kernel = Kernel(types, Random(seed), **shape)  # type: ignore[arg-type]
    auditor = Auditor(kernel, types)
    low, seen = 0, 0
    while True:
        look = auditor.look(low, ALL, most)
        assert (look.ended, look.problems) == ("AUDIT_DONE", set())
        inside = [vma for vma in kernel.own if low <= vma.first <= look.state.high]
        assert all(vma.last <= look.state.high for vma in inside), "no VMA is cut"
        assert look.state.vmas == len(inside) <= most
        seen += len(inside)
        if look.state.high == ALL:
            break
        assert look.state.high >= low, "each slice goes on"
        low = look.state.high + 1
    assert seen == len(kernel.own)


@slow
@given(seed=st.integers(0, 1 << 32), shape=SHAPES, ends=st.lists(st.integers(0, ALL), min_size=2))
def test_look_at_a_range_takes_the_vmas_that_are_partly_in_it(
    types: bytes, seed: int, shape: dict[str, float], ends: list[int]
) -> None:
    kernel = Kernel(types, Random(seed), **shape)  # type: ignore[arg-type]
    top = kernel.own[-1].last * 2
    low, high = sorted(end % top for end in ends[:2])
    look = Auditor(kernel, types).look(low, high)
    assert look.problems == set()
    inside = [vma for vma in kernel.own if vma.first <= high and vma.last >= low]
    assert look.state.vmas == len(inside)


def test_mm_of_many_vmas_takes_several_runs(types: bytes) -> None:
    kernel = Kernel(types, Random(5), vmas=3000)
    look = Auditor(kernel, types).look()
    assert look.problems == set()
    assert look.state.vmas == 3000
    assert look.runs > 3, "33 tail calls a run do not reach the end"


def test_mm_without_a_tree_has_nothing_to_look_at(types: bytes) -> None:
    kernel = Kernel(types, Random(5), vmas=1)
    kernel.set(kernel.tree, "maple_tree.ma_root", 0)
    kernel.set(kernel.mm, "mm_struct.map_count", 0, 4)
    look = Auditor(kernel, types).look()
    assert (look.ended, look.problems, look.state.nodes) == ("AUDIT_DONE", set(), 0)


@pytest.mark.parametrize("bounds", ["no base", "no end", "neither", "mm below", "mm above"])
def test_without_bounds_nothing_is_read(bounds: str) -> None:
    types = TYPES["seqcount"]
    kernel = Kernel(types, Random(5), vmas=20)
    auditor, memory = Auditor(kernel, types), kernel.memory
    auditor.bounds(
        *{
            "no base": (0, memory.end),
            "no end": (memory.start, 0),
            "neither": (0, 0),
            "mm below": (kernel.mm - 0x100000 + 8, memory.end),
            "mm above": (memory.start - 0x100000, kernel.mm),
        }[bounds]
    )
    look = auditor.look()
    assert (look.ended, look.doubts) == ("AUDIT_ASTRAY", [])
    assert auditor.words_read == 0
    assert look.state.nodes == look.state.id_before == 0


def test_the_first_megabyte_of_the_direct_map_is_not_read() -> None:
    """There x86 maps the memory of VGA cards: a read may change its state."""
    types = TYPES["seqcount"]
    kernel = Kernel(types, Random(5), vmas=60)
    auditor = Auditor(kernel, types)
    leaf = kernel.memory.start + 0x1000 & ~255
    auditor.bounds(kernel.memory.start - 0x1000, kernel.memory.end)
    assert leaf < kernel.memory.start + 0x100000 - 0x1000
    assert auditor.look().ended == "AUDIT_ASTRAY", "the mm itself is there"


@pytest.mark.parametrize("last", ["vm_area_struct", "anon_vma_chain"])
@pytest.mark.parametrize("beyond", [0, 8])
def test_objects_at_the_end_of_ram_are_read_and_none_beyond(
    types: bytes, last: str, beyond: int
) -> None:
    """On 6.1 a VMA in the last 300 bytes of 3 GiB was accused: its vm_pgoff was taken for 0."""
    kernel = Kernel(types, Random(5), vmas=30)
    memory, at = kernel.memory, kernel.own[-1].last + 1

    def at_the_end(size: int, make: Callable[[], Made]) -> Made:
        free, memory.free = memory.free, memory.end - size
        made = make()
        assert memory.free == memory.end
        memory.free = free
        return made

    if last == "vm_area_struct":
        vma = at_the_end(192, lambda: kernel.vma(at, at + 0x1FFF))
        kernel.add_anon(vma)
    else:
        vma = kernel.vma(at, at + 0x1FFF)
        kernel.anon_vmas = [[family[0]] for family in kernel.anon_vmas]
        at_the_end(64, lambda: kernel.add_anon(vma))
    kernel.own.append(vma)
    kernel.rebuild()
    auditor = Auditor(kernel, types)
    auditor.bounds(kernel.page_offset, memory.end - beyond)
    look = auditor.look()
    assert (look.ended, look.state.vmas) == ("AUDIT_DONE", 31)
    unread = "VMA_UNREADABLE" if last == "vm_area_struct" else "INTERVAL_UNREADABLE"
    assert unread in look.problems if beyond else not look.problems


def test_zero_entry_of_a_failed_fork_is_counted_and_no_vma(types: bytes) -> None:
    kernel = Kernel(types, Random(9), vmas=30)
    at, slot = next(
        (at, slot)
        for at in kernel.built.nodes
        for slot in range(16, 31)
        if kernel.memory.get(at + 8 * slot) == kernel.own[12].at
    )
    kernel.memory.put(at + 8 * slot, 1030)
    kernel.set(kernel.mm, "mm_struct.map_count", 29, 4)
    look = Auditor(kernel, types).look()
    assert (look.state.special, look.state.vmas, look.problems) == (1, 29, set())


def test_owned_locks_are_noted_once_in_a_row(types: bytes) -> None:
    kernel = Kernel(types, Random(3), vmas=40, files=1.0, anon=0.0)
    lock = kernel.place(kernel.mappings[0], "address_space.i_mmap_rwsem")
    kernel.memory.put(kernel.count_of(lock), kernel.writer)
    path, waited_for = "rw_semaphore.owner", 0
    if kernel.realtime:
        path, waited_for = "rw_semaphore.rwbase.rtmutex.owner", RT_MUTEX_HAS_WAITERS
    kernel.set(lock, path, 0xFFFF888012345000 | waited_for)
    kernel.memory.put(kernel.count_of(kernel.lock), kernel.writer)
    look = Auditor(kernel, types).look()
    assert not look.undisturbed
    assert look.problems == set()
    own = LAYOUTS.constants
    assert (look.owned[0].lock, look.owned[0].kind) == (kernel.lock, own["AUDIT_MMAP_LOCK"])
    rest = look.owned[1:]
    assert {one.lock for one in rest} == {lock}
    assert {one.kind for one in rest} == {own["AUDIT_I_MMAP_RWSEM"]}
    assert {one.owner for one in rest} == {0xFFFF888012345000}
    users = [vma.at for vma in kernel.own if vma.mapping == kernel.mappings[0]]
    assert rest[0].vma == users[0]
    assert look.state.raced_climbs == len(users)
    assert look.state.owned == len(look.owned) < len(users)


def test_copies_are_made_only_within_the_direct_map() -> None:
    types = TYPES["seqcount"]
    kernel = Kernel(types, Random(5), vmas=20)
    auditor = Auditor(kernel, types)
    layout, copies = LAYOUTS.structs["audit_copy"], auditor.native.maps["audit_copies"]
    leaf, memory = next(iter(kernel.built.nodes)), kernel.memory
    wanted = [leaf, memory.start - 256, memory.end - 8, leaf + 4, 0, kernel.mm]
    copies.load(b"".join(layout.pack(at=at) for at in wanted))
    auditor.native.programs["audit_copy"].run(0, len(wanted))
    found = [layout.unpack(copies.lookup(n.to_bytes(4, "little")) or b"") for n in range(6)]
    assert [one.at for one in found] == [leaf, 0, 0, 0, 0, kernel.mm]
    assert bytes(memory.read(leaf, 256) or b"") == b"".join(
        int(word).to_bytes(8, "little") for word in found[0].words
    )
    assert not any(found[1].words)


def test_writer_program_counts_writers_and_no_readers() -> None:
    types = TYPES["writers counted"]
    kernel = Kernel(types, Random(5), vmas=2)
    auditor = Auditor(kernel, types)
    program = auditor.native.programs["audit_writer"]
    for write in (0, 1, 1):
        program.run(kernel.mm, write, 1)
    assert auditor.look().state.seq_after == 2
