"""A change of hooks begins a new epoch: no half of a window, lock or fork is recorded."""

from __future__ import annotations

import pytest

from tests.support.box import Box, box
from tests.support.model_kernel import ModelKernel
from tests.support.native import LAYOUTS


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
    model = ModelKernel()
    one, two = model.new_mm(), model.new_mm()
    model.become(5)
    model.lock_mm(one, write=False)
    with model.tables.epochs.changing_hooks(windows=False, mmap_locks=True):
        pass  # the release is not seen
    model.lock_mm(two, write=False)
    model.unlock_mm(two, write=False)
    model.unlock_mm(one, write=False)
    counters = model.tables.counters.read()
    assert (counters["NESTED_HOLDS"], counters["LOCKS_UNRECORDED"]) == (0, 1)


def test_open_fork_window_is_closed_by_change_of_mmap_lock_hooks() -> None:
    model = ModelKernel()
    parent = model.new_mm()
    model.begin_fork(parent)
    layout = LAYOUTS.structs["fork_window"]
    raw = model.native.maps["fork_windows"].lookup(bytes(4)) or b""
    assert layout.unpack(raw).end_ns == 0
    with model.tables.epochs.changing_hooks(windows=False, mmap_locks=True):
        pass
    after = layout.unpack(model.native.maps["fork_windows"].lookup(bytes(4)) or b"")
    assert after.end_ns > 0
    assert replace_end(after) == layout.unpack(raw)


def replace_end(row: object) -> object:
    vars(row)["end_ns"] = 0
    return row
