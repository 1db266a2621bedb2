"""The program at each line of the kernel's log: which lines it sends, with which task and mm."""

from __future__ import annotations

import ctypes

import pytest

from tests.support.box import Box, Vma, box
from tests.support.native import LAYOUTS
from tests.unit.probes.test_windows import grow
from tracer.invariants.kernel_reports import _HEADS
from tracer.tables.events import Event

SECOND = 1_000_000_000
PF_EXITING = 4
A_SECOND, FREEZE_NS = (
    LAYOUTS.constants["COMPLAINTS_A_SECOND"],
    LAYOUTS.constants["FREEZE_NS"],
)
BAD = "BUG: Bad rss-counter state mm:00000000eadbeef0 type:MM_ANONPAGES val:1"


def printk(b: Box, line: str, behind: str = "\nrubbish") -> None:
    """Run the program as printk_sprint() does: the text is not terminated at its length."""
    text = line.encode()
    block = ctypes.create_string_buffer(text + behind.encode())
    b.native.programs["complaint"].run(ctypes.addressof(block), len(text))


def sent(b: Box) -> list[tuple[str, Event]]:
    events = b.tables.events
    found = ((events.decode(raw), raw) for raw in b.native.events())
    return [(events.complaint_line(raw), e) for e, raw in found if e.kind == "COMPLAINT"]


def ready() -> Box:
    b = box()
    b.tick(100 * SECOND)
    return b


def test_complaint_is_sent_with_its_line_and_its_task() -> None:
    b = ready()
    printk(b, BAD)
    ((line, event),) = sent(b)
    assert line == BAD
    assert (event.tid, event.tgid, event.comm, event.mm, event.freed) == (7, 7, "harness", b.mm, 0)
    assert event.stack == 7


def test_long_line_is_cut_and_short_ones_are_not_read_beyond_their_end() -> None:
    b = ready()
    printk(b, "WARNING: " + "x" * 300)
    printk(b, "BUG: ", behind=" and what was there before")
    printk(b, "BUG")
    (long, _), (short, _) = sent(b)
    assert long == "WARNING: " + "x" * 110
    assert short == "BUG: "


@pytest.mark.parametrize("head", sorted(_HEADS))
def test_every_beginning_that_the_table_knows_is_sent(head: str) -> None:
    b = ready()
    printk(b, f"{head} and more")
    assert [line for line, _ in sent(b)] == [f"{head} and more"]


@pytest.mark.parametrize("line", ["EXT4-fs (loop0): mounted", "", "bug: no", "<3>BUG: no prefix"])
def test_other_lines_cost_no_event(line: str) -> None:
    b = ready()
    printk(b, line)
    assert sent(b) == []


def test_nothing_is_sent_while_the_gate_is_closed() -> None:
    b = ready()
    b.tables.params.set(gate=0)
    printk(b, BAD)
    assert sent(b) == []


def test_task_that_exits_still_borrows_its_mm() -> None:
    """exit_mm() clears task->mm before exit_mmap() finds what is wrong."""
    b = ready()
    b.set(b.task, "task_struct.active_mm", 0x5000)
    printk(b, BAD)
    b.set(b.task, "task_struct.mm", 0)
    printk(b, BAD)
    ctypes.c_uint32.from_address(b.task + b.offset("task_struct.flags")).value = PF_EXITING
    printk(b, BAD)
    assert [event.mm for _, event in sent(b)] == [b.mm, 0, 0x5000], "of a kernel thread: none"


def test_mm_that_this_task_drops_is_named() -> None:
    b = ready()
    b.native.programs["mm_dropped"].call((0x7000,), 1 << 40)
    printk(b, BAD)
    b.native.set("harness_task", b.task + 8)
    printk(b, BAD)
    assert [event.freed for _, event in sent(b)] == [0x7000, 0], "another task ran since"


def test_events_of_a_cpu_are_limited_and_the_rest_counted() -> None:
    b = ready()
    for _ in range(A_SECOND + 5):
        printk(b, BAD)
    assert len(sent(b)) == A_SECOND
    assert b.tables.counters.read()["COMPLAINTS_UNSENT"] == 5
    b.tick(SECOND)
    printk(b, BAD)
    assert len(sent(b)) == 1


def test_full_ring_is_counted() -> None:
    b = ready()
    b.native.set("harness_ring_room", 0)
    printk(b, BAD)
    assert b.tables.counters.read()["EVIDENCE_LOST"] == 1


def grown(b: Box, vma: Vma) -> int:
    grow(b, vma, 0x4000)
    return len(b.tables.flight_recorder.flights())


def test_complaint_freezes_the_flight_recorder_until_it_has_been_read() -> None:
    b = ready()
    b.held(b.mmap_lock)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    before = grown(b, vma)
    began = b.now
    printk(b, BAD)
    assert grown(b, vma) == before, "a window is counted and not written"
    b.tick(1000)
    b.tables.flight_recorder.thaw(b.now)
    assert grown(b, vma) == before + 1
    recorded = b.tables.flight_recorder.recorded()
    assert recorded.frozen_ns[0] == began
    assert "frozen" in recorded.gaps(began - 1, b.now)
    assert recorded.gaps(recorded.frozen_ns[1], b.now) == ""


def test_freeze_ends_by_itself_and_a_flood_does_not_prolong_it() -> None:
    b = ready()
    b.held(b.mmap_lock)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    before = grown(b, vma)
    printk(b, BAD)
    b.tick(FREEZE_NS // 2)
    printk(b, BAD)
    assert grown(b, vma) == before
    b.tick(FREEZE_NS)
    printk(b, BAD)
    assert grown(b, vma) == before + 1
