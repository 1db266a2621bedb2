"""A change of hooks begins a new epoch: no half of a window, lock or fork is recorded."""

from __future__ import annotations

import pytest

from tests.support.box import Box, box
from tests.support.native import LAYOUTS
from tests.support.world import World


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_window_that_spans_change_of_hooks_is_not_counted(when: str) -> None:
    """The release of its lock is not seen: the lock would look like one that is never released."""
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    lock = b.anon_lock(vma.anon_vma)
    if when == "before":
        b.enter("unlink_anon_vmas", vma.at)
        b.down(lock)
    with b.tables.epochs.changing_hooks(windows=True, mmap_locks=False):
        if when == "meanwhile":
            b.enter("unlink_anon_vmas", vma.at)
            b.down(lock)
    b.free(lock)  # without a hook
    b.leave("unlink_anon_vmas", vma.at)
    assert b.seen() == {}
    assert b.native.events() == []
    window_of(b)
    assert list(b.seen().values()) == [1], "the next window is counted"
    assert b.held_rwsems() == 0


def window_of(b: Box) -> None:
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    with b.call("unlink_anon_vmas", vma.at), b.locked(b.anon_lock(vma.anon_vma)):
        pass


def test_mmap_lock_held_across_change_of_hooks_has_no_order() -> None:
    world = World()
    one, two = world.new_mm(), world.new_mm()
    world.become(5)
    world.lock_mm(one, write=False)
    with world.tables.epochs.changing_hooks(windows=False, mmap_locks=True):
        pass  # the release is not seen
    world.lock_mm(two, write=False)
    world.unlock_mm(two, write=False)
    world.unlock_mm(one, write=False)
    counters = world.tables.counters.read()
    assert (counters["NESTED_HOLDS"], counters["LOCKS_UNBOOKED"]) == (0, 1)


def test_open_fork_window_is_closed_by_change_of_mmap_lock_hooks() -> None:
    world = World()
    parent = world.new_mm()
    world.begin_fork(parent)
    layout = LAYOUTS.structs["fork_window"]
    raw = world.native.maps["fork_windows"].lookup(bytes(4)) or b""
    assert layout.unpack(raw).end_ns == 0
    with world.tables.epochs.changing_hooks(windows=False, mmap_locks=True):
        pass
    after = layout.unpack(world.native.maps["fork_windows"].lookup(bytes(4)) or b"")
    assert after.end_ns > 0
    assert replace_end(after) == layout.unpack(raw)


def replace_end(row: object) -> object:
    vars(row)["end_ns"] = 0
    return row
