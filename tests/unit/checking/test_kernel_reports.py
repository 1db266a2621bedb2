"""From lines and events to findings: what is a report, whose it is, and what is counted."""

from __future__ import annotations

from typing import cast

import pytest

from tests.support.box import box
from tests.support.native import synthetic_kernel
from tests.unit.checking.test_trail import trails
from tests.unit.probes.test_complaints import printk
from tests.unit.probes.test_windows import grow
from tracer.checking.kernel_reports import (
    LONGEST_NS,
    MOST_BYTES,
    PARTNER_NS,
    QUIET_NS,
    KernelReports,
)
from tracer.checking.verdicts import Verdicts
from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.kernel.kernel_log import KernelLog, LogRecord
from tracer.kernel.symbolizer import Symbols
from tracer.packed import unpack

SECOND = 10**9
RSS = "BUG: Bad rss-counter state mm:00000000eadbeef0 type:MM_ANONPAGES val:1"
MAP = "BUG: Bad page map in process python3  pte:8000000123456025 pmd:104ab067"
WARN = "WARNING: CPU: 1 PID: 5039 at mm/rmap.c:1252 page_add_anon_rmap+0xc33/0x1a70"
ELSEWHERE = "WARNING: CPU: 0 PID: 1 at drivers/usb/core/urb.c:410 usb_submit_urb+0x13/0x18"
HUNG = "INFO: task victim:99 blocked for more than 122 seconds."
END = "---[ end trace 0000000000000000 ]---"


class Log:
    """A kernel log that returns what a test has put into it."""

    def __init__(self) -> None:
        self.records, self.lost, self.wait_ns, self.woken = list[LogRecord](), 0, 0, True
        self.number, self.armed = 0, 0
        self.error: OSError | None = None
        self.fd = -1

    def put(self, *lines: str, facility: int = 0, caller: str = "") -> None:
        for line in lines:
            self.number += 1
            record = LogRecord(self.number, 0, facility, (line,), caller)
            self.records.append(record)

    def read(self) -> list[LogRecord]:
        if self.error:
            raise self.error
        taken, self.records = self.records, []
        return taken

    def take_wake_up(self) -> bool:
        return self.woken

    def arm(self) -> None:
        self.armed += 1


class World:
    """A box with a kernel log, and what becomes of both."""

    def __init__(self, attached: bool = True) -> None:
        self.box, self.log, self.attached = box(), Log(), attached
        self.box.tick(100 * SECOND)
        self.verdicts = Verdicts(Tally(), lambda: 0.0)
        self.reports = KernelReports(
            cast(KernelLog, self.log),
            self.box.tables.events,
            self.box.tables.stacks,
            Symbols(synthetic_kernel()),
            trails(self.box),
            self.box.tables.flight_recorder,
            self.verdicts,
            lambda: self.attached,
            lambda: self.box.now,
        )

    def events(self) -> None:
        for raw in self.box.native.events():
            event = self.box.tables.events.decode(raw)
            if event.kind == "COMPLAINT":
                self.reports.read_event(event, raw)

    def printk(self, *lines: str) -> None:
        """Print as the kernel does: an event, where the line may be a complaint, and a record."""
        for line in lines:
            printk(self.box, line)
            self.log.put(line)
        self.events()

    def work(self, later_ns: int = 0) -> list[Finding]:
        self.box.tick(later_ns)
        self.reports.work()
        return self.verdicts.take_new()

    def checks(self) -> dict[str, int]:
        return {str(verdict): n for (_, verdict), n in self.verdicts.tally.checks.items() if n}


@pytest.fixture
def world() -> World:
    return World()


def text_of(finding: Finding) -> list[str]:
    return cast(list[str], finding.evidence["kernel_text"])


def test_complaint_of_one_line_is_a_finding_at_once(world: World) -> None:
    world.printk(RSS)
    (found,) = world.work()
    assert (found.invariant, found.verdict, found.function) == (
        "K1",
        Verdict.VIOLATED,
        "check_mm",
    )
    assert found.summary == RSS
    assert text_of(found) == [RSS]
    assert found.signature == (
        "K1 violated check_mm BUG: Bad rss-counter state mm:… type:MM_ANONPAGES val:N"
    )
    assert world.checks() == {"violated": 1}
    assert world.reports.due_ns() is None


def test_report_ends_with_its_last_line_and_has_all_of_it(world: World) -> None:
    lines = [MAP, "addr:00007f0000000000 vm_flags:08000070", "Call Trace:", " <TASK>"]
    trace = [" dump_stack_lvl+0x44/0x5c", " print_bad_pte+0x1/0x2", " zap_pte_range+0x1/0x2"]
    world.printk(*lines, *trace)
    assert world.work() == []
    world.printk(" </TASK>", "EXT4-fs (loop0): mounted filesystem")
    (found,) = world.work()
    assert text_of(found) == [*lines, *trace, " </TASK>"]
    assert found.function == "zap_pte_range"
    assert world.checks() == {"violated": 1, "holds": 1}


def test_report_without_an_end_ends_in_silence(world: World) -> None:
    world.printk(MAP, "addr:00007f0000000000")
    assert world.work() == []
    assert world.reports.due_ns() == world.box.now + QUIET_NS
    assert world.work(QUIET_NS - 1) == []
    assert len(world.work(1)) == 1


def test_report_ends_although_lines_go_on(world: World) -> None:
    world.printk(MAP)
    found = world.work()
    for _ in range(12):
        world.printk("usb 1-1: new device")
        found += world.work(QUIET_NS // 2)
    assert len(found) == 1
    assert len(text_of(found[0])) <= 1 + LONGEST_NS // (QUIET_NS // 2)
    assert world.checks()["holds"] >= 1


def test_text_of_a_report_is_bounded(world: World) -> None:
    world.printk(MAP, *["x" * 200] * 200, " </TASK>")
    (found,) = world.work()
    assert sum(map(len, text_of(found))) < MOST_BYTES
    assert text_of(found)[-1] == "(the rest is cut off)"


def test_next_complaint_ends_the_one_before(world: World) -> None:
    world.printk(MAP, RSS)
    world.work()
    assert [one.summary for one in world.work(QUIET_NS)] == []
    assert world.checks() == {"violated": 2}


def test_crash_is_one_report(world: World) -> None:
    """kernel BUG at …, Oops: invalid opcode …, end trace (6.12)."""
    crash = ["kernel BUG at mm/rmap.c:55!", "Oops: invalid opcode: 0000 [#1] PREEMPT SMP NOPTI"]
    world.printk(*crash, "RIP: 0010:folio_x+0x1/0x2", END)
    (found,) = world.work()
    assert found.function == "folio_x"
    assert text_of(found) == [*crash, "RIP: 0010:folio_x+0x1/0x2", END]
    assert world.checks() == {"violated": 1}


def test_message_and_dump_before_the_warning_belong_to_it(world: World) -> None:
    cut = "------------[ cut here ]------------"
    world.printk("usb 1-1: new", "page: refcount:1 mapcount:0", cut, "a message", WARN, END)
    (found,) = world.work()
    assert text_of(found) == ["page: refcount:1 mapcount:0", cut, "a message", WARN, END]


def test_complaint_about_something_else_holds_and_is_logged_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.printk(ELSEWHERE, END, ELSEWHERE, END)
    assert world.work() == []
    assert world.checks() == {"holds": 2}
    assert caplog.text.count("drivers/usb/core/urb.c:410") == 1


def test_what_user_space_writes_is_no_complaint(world: World) -> None:
    """echo 'BUG: …' > /dev/kmsg fires the tracepoint, too; the record has facility 1."""
    printk(world.box, RSS)
    world.log.put(RSS, facility=1)
    world.events()
    assert world.work() == []
    assert world.work(SECOND) == []
    assert world.checks() == {}
    assert world.reports.due_ns() is None


@pytest.mark.parametrize("event_first", [True, False])
def test_event_of_user_space_is_not_given_to_the_kernels_line(
    world: World, event_first: bool
) -> None:
    printk(world.box, RSS)
    if event_first:
        world.events()
    world.log.put(RSS, facility=1)
    world.work()
    world.events()
    world.box.become(42)
    world.printk(RSS)
    (found,) = world.work()
    assert found.evidence["printed_by"] == "harness[42]"


def test_line_waits_a_moment_for_its_event(world: World) -> None:
    printk(world.box, MAP)
    world.log.put(MAP, " </TASK>")
    assert world.work() == []
    world.events()
    (found,) = world.work()
    assert found.task["pid"] == 7


def test_line_without_an_event_is_a_finding_without_a_task(world: World) -> None:
    world.log.put(RSS)
    assert world.work() == []
    (found,) = world.work(PARTNER_NS)
    assert found.task == {}
    assert "not known" in found.evidence["trail_note"]


def test_where_the_tracepoint_is_missing_no_line_waits() -> None:
    world = World(attached=False)
    world.log.put(RSS)
    (found,) = world.work()
    assert found.task == {}


def test_trail_of_a_freed_mm_is_that_of_its_process_and_not_of_who_prints(world: World) -> None:
    b = world.box
    b.held(b.mmap_lock)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    b.become(33)
    grow(b, vma, 0x4000)
    b.become(34)
    grow(b, vma, 0x5000)
    b.become(35)
    b.native.programs["mm_dropped"].call((b.mm,), 1 << 40)
    world.printk(RSS)
    (found,) = world.work()
    assert [step["task"]["pid"] for step in unpack(found.trail)] == [34], (
        "33 had the address before"
    )
    assert found.task == {"pid": 34, "tgid": 34, "comm": ""}
    assert found.evidence["printed_by"] == "harness[35]"
    assert found.evidence["mm"] == hex(b.mm)


def test_trail_is_read_before_later_windows_overwrite_it(world: World) -> None:
    b = world.box
    b.held(b.mmap_lock)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    grow(b, vma, 0x4000)
    world.printk(MAP)
    assert b.tables.flight_recorder.recorded().frozen_ns[1] <= b.now, "thawed"
    for end in range(0x5000, 0x1D000, 0x1000):  # more than the recorder has rows
        grow(b, vma, end)
    world.work()
    (found,) = world.work(QUIET_NS)
    assert [step["vma"]["vm_end"] for step in unpack(found.trail)] == ["0x4000"]
    assert found.evidence["trail_note"] == "The flight recorder has all since then."


def test_hung_task_is_a_suspect_and_names_the_task_that_hangs(world: World) -> None:
    world.printk(HUNG, "Call Trace:", " rwsem_down_write_slowpath+0x1/0x2", " __split_vma+0x1/0x2")
    assert world.work() == []
    (found,) = world.work(QUIET_NS)
    assert (found.verdict, found.task) == (Verdict.SUSPECT, {"pid": 99, "comm": "victim"})
    assert found.evidence["printed_by"] == "harness[7]"


def test_hung_task_without_memory_management_is_no_finding(world: World) -> None:
    world.printk(HUNG, "Call Trace:", " io_schedule+0x1/0x2", " filemap_fault+0x1/0x2")
    world.work()
    assert world.work(QUIET_NS) == []
    assert world.checks() == {"holds": 1}


def test_repeated_complaint_is_counted_and_costs_no_trail(world: World) -> None:
    world.printk(RSS)
    assert len(world.work()) == 1
    world.printk(RSS.replace("val:1", "val:7"))
    assert world.work() == []
    assert world.checks() == {"violated": 2}


def test_lost_records_are_unverifiable(world: World) -> None:
    world.log.lost = 15
    world.log.put("usb 1-1: new")
    world.work()
    world.work()
    assert world.checks() == {"unverifiable": 15, "holds": 1}


def test_callers_keep_reports_apart(world: World) -> None:
    """CONFIG_PRINTK_CALLER: two CPUs print at the same time."""
    world.attached = False
    world.log.put(MAP, caller="T1")
    world.log.put("BUG: Bad page state in process b  pfn:1", caller="T2")
    world.log.put(" one+0x1/0x2", caller="T1")
    world.log.put(" two+0x1/0x2", caller="T2")
    world.log.put(" </TASK>", caller="T1")
    world.log.put(" </TASK>", caller="T2")
    first, second = world.work()
    assert (first.function, second.function) == ("one", "two")


def test_kernel_that_refuses_to_be_read_is_logged_and_asked_no_more(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.log.error = PermissionError(1, "Operation not permitted")
    world.work()
    world.work()
    assert caplog.text.count("cannot be read any more") == 1
    with pytest.raises(PermissionError):
        world.reports.rehearse()


def test_bounded_reading_goes_on_by_the_clock(world: World) -> None:
    world.log.wait_ns = SECOND // 4
    world.work()
    assert world.log.armed == 0
    assert world.reports.due_ns() == world.box.now + SECOND // 4
    world.log.wait_ns, world.log.woken = 0, False
    world.work()
    assert world.log.armed == 0
    world.work(SECOND // 4)
    assert world.log.armed == 1
    assert world.reports.due_ns() is None


def test_close_decides_what_is_not_complete(world: World) -> None:
    world.printk(MAP, "addr:00007f0000000000")
    world.reports.close()
    assert len(world.verdicts.take_new()) == 1


def test_old_event_is_not_given_to_a_new_line(world: World) -> None:
    """An event whose record was overwritten waits for nothing that comes later."""
    printk(world.box, RSS)
    world.events()
    world.box.tick(11 * SECOND)
    world.log.put(RSS)
    world.work()
    (found,) = world.work(PARTNER_NS)
    assert found.task == {}
