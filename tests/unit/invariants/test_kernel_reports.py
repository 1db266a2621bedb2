"""The table of complaints: formats of real kernels, what is about memory management, signatures.

Each first line is a format string of a kernel image, filled in: `6.1` is Debian's 6.1.192, `6.12`
6.12.95, `7.2` 7.2.12, `7.3` 7.3.4 (`strings vmlinux`). Formats of checks that Debian does not build
in (KASAN, KCSAN, lockdep) are those of mm/kasan/report.c, kernel/kcsan/report.c and
kernel/locking/lockdep.c, v6.12.
"""

from __future__ import annotations

import re

import pytest

from tracer.invariants.kernel_reports import (
    _HEADS,
    KINDS,
    about_mm,
    function_of,
    kind_of,
    leads_to,
    shape_of,
)
from tracer.invariants.verdict import Verdict

FIRST = [
    # 6.1, 6.12, and with the name of the task that drops the mm 7.2, 7.3
    ("bad_rss_counter", "BUG: Bad rss-counter state mm:00000000eadbeef0 type:MM_ANONPAGES val:1"),
    (
        "bad_rss_counter",
        "BUG: Bad rss-counter state mm:00000000eadbeef0 type:MM_ANONPAGES val:1 Comm:sh Pid:17",
    ),
    ("pgtables_bytes", "BUG: non-zero pgtables_bytes on freeing mm: 4096"),
    # 6.1, 6.12; 7.2; 7.3
    ("bad_page_map", "BUG: Bad page map in process python3  pte:8000000123456025 pmd:104ab067"),
    ("bad_page_map", "BUG: Bad page map in process python3  pte:8000000123456025"),
    ("suppressed", "BUG: Bad page map: 12 messages suppressed"),
    ("bad_page_state", "BUG: Bad page state in process kcompactd0  pfn:12345"),
    ("bad_page_cache", "BUG: Bad page cache in process rm  pfn:104ab"),
    # 6.1 and 6.12; from 6.19 on
    ("warning", "WARNING: CPU: 1 PID: 5039 at mm/rmap.c:1252 page_add_anon_rmap+0xc33/0x1a70"),
    ("warning", "WARNING: CPU: 1 PID: 5039 at page_add_anon_rmap+0xc33/0x1a70"),
    ("warning", "WARNING: mm/rmap.c:1252 at __folio_add_rmap+0x33/0x170, CPU#1: kswapd0/85"),
    ("warning", "WARNING: at __folio_add_rmap+0x33/0x170, CPU#1: kswapd0/85"),
    # with CONFIG_DEBUG_BUGVERBOSE_DETAILED
    ("warning", "WARNING: [!x && y] mm/rmap.c:12 at folio_x+0x3/0x17, CPU#1: a b/85"),
    ("kernel_bug", "kernel BUG at include/linux/swapops.h:557!"),
    ("bug", "BUG: kernel NULL pointer dereference, address: 0000000000000008"),
    ("bug", "BUG: unable to handle page fault for address: ffffc90000b33ff8"),
    ("bug", "BUG: TASK stack guard page was hit at 0000000012345678 (stack is 1..2)"),
    # 6.1; 6.12 on
    ("oops", "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP"),
    ("oops", "Oops: general protection fault, kernel NULL pointer dereference 0x0: 0000 [#1] SMP"),
    ("oops", "Oops: 0002 [#1] PREEMPT SMP NOPTI"),
    ("oops", "Internal error: Oops: 0000000096000004 [#1] SMP"),
    ("bug", "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008"),
    ("sanitizer", "BUG: KASAN: slab-use-after-free in rmap_walk_anon+0x1ac/0x5f0"),
    ("sanitizer", "BUG: KFENCE: use-after-free read in unlink_anon_vmas+0x75/0x1c0"),
    ("data_race", "BUG: KCSAN: data-race in vma_start_write / lock_vma_under_rcu"),
    ("soft_lockup", "watchdog: BUG: soft lockup - CPU#0 stuck for 745s! [stress-ng:812]"),
    ("other_bug", "BUG: scheduling while atomic: python3/812/0x00000002"),
    ("other_bug", "BUG: workqueue leaked atomic, lock or RCU: kworker/0:1[8]"),
    ("other_bug", "BUG: sleeping function called from invalid context at mm/memory.c:12"),
    ("lockdep", "WARNING: possible circular locking dependency detected"),
    ("lockdep", "WARNING: possible recursive locking detected"),
    ("lockdep", "WARNING: suspicious RCU usage"),
    ("lockdep", "WARNING: inconsistent lock state"),
    ("lockdep", "WARNING: bad unlock balance detected!"),
    ("lockdep", "WARNING: lock held when returning to user space!"),
    # 6.1, 6.12; 7.2
    ("hung_task", "INFO: task khugepaged:170 blocked for more than 122 seconds."),
    ("hung_task", "INFO: task a task:17 blocked in I/O wait for more than 122 seconds."),
    ("rcu_stall", "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"),
    ("rcu_stall", "rcu: INFO: rcu_sched self-detected stall on CPU"),
    ("rcu_stall", "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-.... }"),
    ("rcu_stall", "INFO: rcu_tasks detected stalls on tasks:"),
]
OTHER = [
    # lines of the same images that begin alike
    "WARNING: BIOS bug: CPU MTRRs don't cover all of memory, losing 12MB of RAM.",
    "WARNING: Unprivileged eBPF is enabled with eIBRS+LFENCE mitigation and SMT, data leaks",
    "WARNING: stack recursion on stack type 4",
    "WARNING: can't access registers at asm_exc_page_fault+0x22/0x30",
    "INFO: task a:17 <writer> blocked on an rw-semaphore likely owned by task b:18 <reader>",
    "INFO: task a:17 is blocked on a mutex, but the owner is not found.",
    "INFO: lockdep is turned off.",
    "BUG: MAX_LOCKDEP_CHAINS too low!",
    "rcu: Hierarchical RCU implementation.",
    "watchdog: Delayed init of the lockup detector failed: -5",
    "Oopsed too often (kernel.oops_limit is 10000)",
    "kernel tried to execute NX-protected page",
    "",
]
HUNG = """\
INFO: task shared_part:125 blocked for more than 10 seconds.
      Not tainted 7.3.4+deb13-amd64 #1 Debian 7.3.4-1~bpo13+1
"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
task:shared_part     state:D stack:0     pid:125   tgid:125   ppid:123    task_flags:0x400100
Call Trace:
 <TASK>
 __schedule+0x52a/0x1080
 schedule+0x28/0xa0
 schedule_preempt_disabled+0x16/0x30
 rwsem_down_read_slowpath+0x2ca/0x590
 ? alloc_pages_mpol+0xaa/0x190
 down_read+0x49/0xa0
 huge_pmd_share+0x49/0x2f0
 ? __pud_alloc+0x14b/0x210
 huge_pte_alloc+0x1aa/0x200
 move_hugetlb_page_tables+0x1c0/0x7e0
 move_page_tables+0xfc2/0x11f0
 copy_vma_and_data+0xdb/0x1e0
 move_vma+0xbc/0x1f0
 do_mremap+0x395/0x800
 __do_sys_mremap+0x8b/0xb0
 do_syscall_64+0xc4/0x560
 entry_SYSCALL_64_after_hwframe+0x76/0x7e
RIP: 0033:0x7f30b4089a00
 </TASK>
INFO: task shared_part:125 <reader> blocked on an rw-semaphore likely owned by task shared_part:125
"""
"""A guest of 7.3.4 printed it (2026-11-29, shortened): mremap() of a shared hugetlbfs mapping waits
for the i_mmap_rwsem that it holds."""
TRACE = [" <TASK>", " dump_stack_lvl+0x44/0x5c", " rmap_walk_anon+0x1/0x2", " </TASK>"]


@pytest.mark.parametrize(("kind", "line"), FIRST)
def test_first_line_has_its_kind(kind: str, line: str) -> None:
    found = kind_of(line)
    assert found
    assert found.name == kind


def test_every_kind_has_a_first_line_here() -> None:
    assert {kind for kind, _ in FIRST} == {kind.name for kind in KINDS}
    assert {line[:4] for _, line in FIRST} == _HEADS


@pytest.mark.parametrize("line", OTHER)
def test_other_lines_are_no_complaint(line: str) -> None:
    assert kind_of(line) is None


@pytest.mark.parametrize(("kind", "line"), FIRST)
def test_first_line_is_known_by_its_beginning_that_the_probe_sends(kind: str, line: str) -> None:
    assert kind_of(line[:119]), kind


def test_suspects_are_what_the_kernel_has_only_measured() -> None:
    suspects = {kind.name for kind in KINDS if kind.verdict is Verdict.SUSPECT}
    assert suspects == {"data_race", "soft_lockup", "hung_task", "rcu_stall"}


@pytest.mark.parametrize(
    ("lines", "ours"),
    [
        (["BUG: Bad page map in process a  pte:1 pmd:2"], True),
        (["WARNING: CPU: 1 PID: 5 at mm/rmap.c:1252 page_add_anon_rmap+0xc33/0x1a70"], True),
        (["WARNING: CPU: 1 PID: 5 at mm/huge_memory.c:12 split_huge+0x3/0x7"], True),
        (["WARNING: include/linux/rmap.h:12 at folio_add+0x3/0x7, CPU#1: a/2"], True),
        (["WARNING: CPU: 0 PID: 1 at drivers/usb/core/urb.c:410 usb_submit_urb+0x1/0x2"], False),
        (["WARNING: CPU: 0 PID: 1 at drivers/gpu/drm/mm/rmap.c:4 x+0x1/0x2"], False),
        # WARN_ON_ONCE_GFP(order > MAX_ORDER): the caller asked for too much
        (["WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:5349 __alloc_pages+0x45d/0x500"], False),
        (["WARNING: CPU: 0 PID: 1 at mm/kasan/report.c:5 x+0x45d/0x500"], False),
        # a driver that warns while a task faults in memory
        (["WARNING: CPU: 0 PID: 1 at drivers/x.c:4 x+0x1/0x2", " zap_pte_range+0x1/0x2"], False),
        (["kernel BUG at include/linux/swapops.h:557!"], True),
        (["kernel BUG at fs/ext4/inode.c:55!", " exit_mmap+0x1/0x2"], False),
        (["BUG: unable to handle page fault for address: 8", "RIP: 0010:rmap_walk+0x1/0x2"], True),
        (["BUG: kernel NULL pointer dereference, address: 8", "RIP: 0010:usb_x+0x1/0x2"], False),
        (["Internal error: Oops: 0000000096000004 [#1] SMP", "pc : rmap_walk+0x1/0x2"], True),
        (["Internal error: Oops: 0000000096000004 [#1] SMP", "pc : usb_x+0x1/0x2"], False),
        (["BUG: KASAN: slab-use-after-free in unlink_anon_vmas+0x1ac/0x5f0"], True),
        (["BUG: KASAN: slab-use-after-free in __mutex_lock+0x1ccd/0x25c0", *TRACE], True),
        (["INFO: task a:1 blocked for more than 122 seconds.", " __vma_start_write+0x1/0x2"], True),
        (HUNG.splitlines(), True),
        # a page fault that waits for a disk
        (
            [
                "INFO: task a:1 blocked for more than 122 seconds.",
                " io_schedule+0x4a/0x80",
                " folio_wait_bit_common+0x13d/0x350",
                " filemap_fault+0x5c3/0x1290",
                " __do_fault+0x33/0x140",
                " handle_mm_fault+0x1b26/0x32b0",
                " do_user_addr_fault+0x764/0x1380",
                " exc_page_fault+0x71/0xd0",
            ],
            False,
        ),
    ],
)  # fmt: skip
def test_report_is_about_memory_management_by_its_file_or_its_functions(
    lines: list[str], ours: bool
) -> None:
    kind = kind_of(lines[0])
    assert kind
    assert about_mm(kind, lines) is ours


def test_function_is_the_first_one_that_does_not_report() -> None:
    def function(*lines: str) -> str:
        kind = kind_of(lines[0])
        assert kind
        return function_of(kind, lines)

    assert function("WARNING: CPU: 1 PID: 5 at mm/rmap.c:1 folio_x+0xc33/0x1a70") == "folio_x"
    assert function("WARNING: mm/rmap.c:1 at folio_x+0x1/0x2, CPU#1: a/2") == "folio_x"
    assert function("BUG: KASAN: use-after-free in rmap_walk_anon+0x1/0x2") == "rmap_walk_anon"
    assert function("kernel BUG at mm/a.c:5!", "RIP: 0010:pfn_x+0x1/0x2") == "pfn_x"
    trace = [" dump_stack_lvl+0x44/0x5c", " bad_page+0x63/0xf0", " ? x+0x1/0x2", " free_x+0x1/0x2"]
    assert function("BUG: Bad page state in process a  pfn:1", *trace) == "free_x"
    assert function("BUG: Bad page cache in process a  pfn:1") == "filemap_unaccount_folio"
    assert function("BUG: Bad rss-counter state mm:0 type:MM_X val:1") == "check_mm"
    assert function(*HUNG.splitlines()) == "huge_pmd_share"


@pytest.mark.parametrize(
    ("one", "other", "shape"),
    [
        (
            "BUG: Bad rss-counter state mm:00000000eadbeef0 type:MM_ANONPAGES val:1 Comm:sh Pid:17",
            "BUG: Bad rss-counter state mm:000000001c2d3e4f type:MM_ANONPAGES val:-3 Comm:a Pid:1",
            "BUG: Bad rss-counter state mm:… type:MM_ANONPAGES val:N",
        ),
        (
            "BUG: Bad page map in process a b  pte:8000000123456025 pmd:104ab067",
            "BUG: Bad page map in process python3  pte:8000000000000067 pmd:aaaaa067",
            "BUG: Bad page map in process …  pte:… pmd:…",
        ),
        (
            "BUG: Bad page state in process kcompactd0  pfn:12345",
            "BUG: Bad page state in process x  pfn:9abc",
            "BUG: Bad page state in process …  pfn:…",
        ),
        (
            "WARNING: CPU: 1 PID: 5039 at mm/rmap.c:1252 page_add_anon_rmap+0xc33/0x1a70",
            "WARNING: CPU: 12 PID: 1 at mm/rmap.c:1252 page_add_anon_rmap+0xc35/0x1a71",
            "WARNING: at mm/rmap.c:1252 page_add_anon_rmap",
        ),
        (
            "WARNING: mm/rmap.c:1252 at __folio_add_rmap+0x33/0x170, CPU#1: kswapd0/85",
            "WARNING: mm/rmap.c:1252 at __folio_add_rmap+0x34/0x170, CPU#0: a:b/1",
            "WARNING: mm/rmap.c:1252 at __folio_add_rmap",
        ),
        (
            "INFO: task khugepaged:170 blocked for more than 122 seconds.",
            "INFO: task a task:17 blocked for more than 245 seconds.",
            "INFO: task … blocked for more than N seconds.",
        ),
        (
            "watchdog: BUG: soft lockup - CPU#0 stuck for 745s! [stress-ng:812]",
            "watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [a [b]:1]",
            "watchdog: BUG: soft lockup - CPU#N stuck for Ns!",
        ),
        (
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "BUG: kernel NULL pointer dereference, address: 0000000000000120",
            "BUG: kernel NULL pointer dereference, address: …",
        ),
    ],
)
def test_signature_is_the_first_line_without_what_differs(one: str, other: str, shape: str) -> None:
    assert shape_of(one) == shape_of(other) == shape


def test_two_warnings_of_a_file_have_two_signatures() -> None:
    first = "WARNING: CPU: 1 PID: 5 at mm/rmap.c:1252 x+0x1/0x2"
    assert shape_of(first) != shape_of(first.replace("1252", "1253"))


def test_lines_before_the_first_one_are_those_of_its_frame() -> None:
    cut = "------------[ cut here ]------------"
    assert leads_to(["EXT4-fs mounted", cut, "a message of WARN()"]) == (cut, "a message of WARN()")
    dump = ["page: refcount:1 mapcount:0 mapping:0 index:0x7 pfn:0x1", "flags: 0x2(locked)"]
    assert leads_to(["usb 1-1: new", *dump, cut]) == (*dump, cut)
    assert leads_to(["usb 1-1: new"]) == ()


def test_no_pattern_takes_long_for_a_long_line() -> None:
    for line in ("WARNING: " + "a:1 at " * 2000, "INFO: task " + ":1 blocked" * 2000):
        kind_of(line)
        shape_of(line)
        assert not re.fullmatch("x", line)


@pytest.mark.parametrize(
    "line",
    [
        "Oops: x[4242]: segfault at 0 ip 0000562f1c8c1139 sp 00007ffd5b7c6f20 error 6 in zap_pte+0",
        "BUG: spinlock [7]: segfault at 0 ip 0 sp 0 error 6 in rmap_walk_anon+0x1",
        "WARNING: x[7]: bad frame in mm/rmap.c:1 at x, CPU#1: y",
        "Oops: x invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "BUG: using x: page allocation failure: order:4, mode:0xcc0(GFP_KERNEL)",
        "INFO: task x (7): drop_caches: 3",
    ],
)
def test_name_of_a_task_is_no_complaint(line: str) -> None:
    """Any user chooses it, and the name of the file behind it."""
    assert kind_of(line) is None


OOPS = "BUG: kernel NULL pointer dereference, address: 0000000000000018"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ("RIP: 0010:mt_report+0x1b2/0x300 [hid_multitouch]", False),
        ("RIP: 0010:mt_report+0x1b2/0x300", False),
        (" eb_validate_vmas+0x1/0x2 [i915]", False),
        (" eb_validate_vmas+0x1/0x2 [i915 7f3c]", False),
        (" tcp_collapse_ofo_queue+0x33/0x90", False),
        (" ? __vm_munmap+0x33/0x90", False),
        ("? __vm_munmap+0x33/0x90", False),
        (" __vm_munmap+0x33/0x90", True),
        (" collapse_huge_page+0x33/0x90", True),
        (" hpage_collapse_scan_pmd.isra.0+0x33/0x90", True),
        ("RIP: 0010:mt_find+0x1b2/0x300", True),
        ("pc : mas_walk+0x10/0x20", True),
    ],
)
def test_oops_is_about_mm_by_the_frames_that_were_called(frame: str, expected: bool) -> None:
    kind = kind_of(OOPS)
    assert kind
    assert about_mm(kind, [OOPS, frame]) == expected
