"""K1: the kernel itself prints no complaint about memory management.

KINDS is the table of complaints. Each begins with a line that one pattern matches, and the first
pattern that matches counts. Formats are those of Linux 6.1 to 7.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Verdict

KERNEL_LOG = "kmsg"
"""The feature that /dev/kmsg can be read."""

_END_OF_TRACE = r"^ *</TASK>$"
_END_MARKER = r"^---\[ end (trace|Kernel panic)"
_SEPARATOR = r"^={40,}$"
_SILENCE = r"(?!)"


@dataclass(frozen=True)
class Kind:
    """One kind of complaint. `first`, `end` and `task` are regular expressions.

    first: matches its first line. end: matches its last line; empty where it has one line. verdict:
    of a complaint about memory management. always_mm: it is about memory management whatever its
    text names. function: that prints it; the text may name one that is at fault. freed: it is about
    the mm that the task frees. crash: what the kernel prints of one crash begins like this more
    than once. task: matches the name and the id of the task that it is about, where that is not the
    one that prints it.
    """

    name: str
    first: str
    end: str = ""
    verdict: Verdict = Verdict.VIOLATED
    always_mm: bool = False
    function: str = ""
    freed: bool = False
    crash: bool = False
    task: str = ""

    def is_end(self, line: str) -> bool:
        """Whether this line is the last one of a report of this kind."""
        return not self.end or bool(re.search(self.end, line))

    def named_task(self, line: str) -> tuple[str, int] | None:
        """Return the name and the id of the task that a first line names, if the kind has one."""
        found = re.search(self.task, line) if self.task else None
        return (found[1], int(found[2])) if found else None


KINDS = (
    Kind(
        "bad_rss_counter",
        r"^BUG: Bad rss-counter state mm:",
        always_mm=True,
        function="check_mm",
        freed=True,
    ),
    Kind(
        "pgtables_bytes",
        r"^BUG: non-zero pgtables_bytes on freeing mm",
        always_mm=True,
        function="check_mm",
        freed=True,
    ),
    Kind(
        "suppressed",
        r"^BUG: Bad page (map|state): \d+ messages suppressed$",
        always_mm=True,
        function="bad_page",
    ),
    Kind(
        "bad_page_map",
        r"^BUG: Bad page map in process ",
        _END_OF_TRACE,
        always_mm=True,
        function="print_bad_pte",
    ),
    Kind(
        "bad_page_state",
        r"^BUG: Bad page state in process ",
        _END_OF_TRACE,
        always_mm=True,
        function="bad_page",
    ),
    Kind(
        "bad_page_cache",
        r"^BUG: Bad page cache in process ",
        _END_OF_TRACE,
        always_mm=True,
        function="filemap_unaccount_folio",
    ),
    Kind("sanitizer", r"^BUG: K(ASAN|MSAN|FENCE): ", _SEPARATOR),
    Kind("data_race", r"^BUG: KCSAN: ", _SEPARATOR, verdict=Verdict.SUSPECT),
    Kind(
        "soft_lockup",
        r"^(watchdog: )?BUG: (soft lockup|workqueue lockup)",
        _END_OF_TRACE,
        verdict=Verdict.SUSPECT,
    ),
    Kind("kernel_bug", r"^kernel BUG at ", _END_MARKER, crash=True),
    Kind(
        "bug",
        r"^(BUG: (unable to handle|kernel NULL pointer|.* stack guard page was hit)"
        r"|Unable to handle kernel )",
        _END_MARKER,
        crash=True,
    ),
    Kind("oops", r"^(Oops: |Internal error: |general protection fault)", _END_MARKER, crash=True),
    Kind(
        "other_bug",
        r"^BUG: (sleeping function|scheduling while atomic|spinlock|rwlock|workqueue leaked"
        r"|using |Invalid wait context|held lock)",
        _END_OF_TRACE,
    ),
    Kind(
        "lockdep",
        r"^WARNING: (possible |suspicious RCU usage|inconsistent lock state|bad unlock balance"
        r"|held lock freed|lock held when returning|Nested lock was not taken|(SOFT|HARD)IRQ-"
        r"|.*/\d+ still has locks held)",
        _END_OF_TRACE,
    ),
    Kind(
        "warning",
        r"^WARNING: (CPU: \d+ PID: \d+ at |.*:\d+ at .*, CPU#\d+: |at .*, CPU#\d+: )",
        _END_MARKER,
    ),
    Kind(
        "hung_task",
        r"^INFO: task .*:\d+ blocked.* for more than \d+ seconds",
        _SILENCE,
        verdict=Verdict.SUSPECT,
        task=r"^INFO: task (.*?):(\d+) blocked",
    ),
    Kind(
        "rcu_stall",
        r"^(rcu: )?INFO: rcu\S* .*detected.* stall",
        _SILENCE,
        verdict=Verdict.SUSPECT,
    ),
)
"""Not in it: `BUG: MAX_LOCKDEP_...`, which says that lockdep's tables are too small."""
_OF_A_TASK = re.compile(
    r"^.{0,15}(?:\[\d+\]| \(\d+\)| invoked oom-killer:|: (?:page allocation|vmalloc error))"
)
"""What the kernel prints behind the name of a task (TASK_COMM_LEN), which its user has chosen: no
such line is a complaint, whatever it begins with."""
_HEADS = frozenset("BUG: WARN kern Oops gene Unab Inte INFO watc rcu:".split())
"""The first four characters of every first line; may_complain() of the probes has the same."""

_MM_FILES = re.compile(
    r"(?<![\w/.])(?:\./)?(?:mm/(?!(?:page_alloc|slab|slub|slab_common|util|vmalloc|percpu|dmapool|mempool|kmemleak"
    r"|zsmalloc|memcontrol|backing-dev|page-writeback|readahead|failslab|kfence/|kasan/|kmsan/)\b)"
    r"[\w/-]+\.c|kernel/fork\.c|kernel/events/uprobes\.c|lib/maple_tree\.c|lib/interval_tree\.c"
    r"|fs/hugetlbfs/inode\.c|fs/proc/task_mmu\.c|fs/userfaultfd\.c"
    r"|include/linux/(?:mm|mm_types|mm_inline|rmap|swapops|leafops|huge_mm|hugetlb|page-flags"
    r"|pgtable|mmap_lock|pagemap|page_ref|maple_tree)\.h|arch/(?:x86|arm64)/mm/[\w/-]+\.c):\d"
)
"""Files whose WARNING or BUG is about memory management. Those of allocators are left out: what
they mostly warn of is a caller that asks for too much."""
_MM_FUNCTIONS = re.compile(
    r"\b_*(?:rmap_walk\w*|try_to_(?:migrate|unmap)\w*|\w*remove_migration_pte\w*|migrate_pages\w*"
    r"|migrate_folio\w*|folio_(?:add|remove|referenced|mkclean)\w*|page_(?:add|remove)_\w*rmap\w*"
    r"|\w*anon_vma\w*|\w*i_mmap\w*|\w*interval_tree\w*|mas_\w+|vma_\w+|\w*_vma|\w*_vmas"
    r"|mt_(?:find|next|prev|validate|dump|destroy_walk|free_walk|free_rcu)\w*"
    r"|v?mm?ap_region|do_v?m[a-z]*map\w*|vm_mmap\w*|vm_munmap|__vm_munmap|do_vmi_\w+|\w*mremap\w*"
    r"|move_page_tables|move_ptes|exit_mmap|dup_mm\w*|__mmdrop|__mmput|free_pgtables|unmap_\w+"
    r"|zap_\w+|\w*split_huge_\w+|hpage_collapse_\w+|collapse_(?:huge_page|file|pte|scan|single)\w*"
    r"|khugepaged\w*|hugetlb_\w+|\w*page_table_check\w*"
    r"|userfaultfd_\w+|mfill_\w+|uprobe_mmap|madvise_\w+|mprotect_\w+|change_protection|mlock_\w+"
    r"|do_swap_page|copy_page_range|migration_entry_wait\w*|do_brk_flags|expand_(?:stack|downwards)"
    r"|page_vma_mapped_walk|walk_page_\w+|ksm_\w+|do_mbind|mmap_(?:read|write)_lock\w*)"
    r"(?:\.\w+)*\+0x(?![0-9a-f]+(?:/0x[0-9a-f]+)? \[(?!#))"
)
"""Functions in a call trace by which a crash, a sanitizer's report or a task that waits is about
memory management. Entry points of page faults are not: a task that waits for a disk has them. Nor
are functions of modules, however they are called: memory management is no module."""
_CALLED = re.compile(
    r"(?:RIP: \w+:|^pc : |\bin |\bat (?:\S+:\d+ )?|^ +(?!\? ))([A-Za-z_][\w.]*)\+0x"
)
_STALE = re.compile(r"^ *\? ")
"""A frame that was found on the stack, and may be left there by an earlier call."""
_REPORTERS = re.compile(
    r"^(?:dump_stack\w*|show_stack\w*|print_\w+|kasan_\w+|__asan_\w+|bad_page|__warn\w*|report_bug"
    r"|handle_bug|exc_\w+|asm_exc_\w+|lockdep_\w+|__schedule|schedule\w*|debug_\w+|rwsem_\w+"
    r"|down_(?:read|write)\w*|_*mutex_lock\w*|io_schedule\w*)"
)
_MOVING = (
    (re.compile(r"in process .*?(?=  |$)"), "in process …"),
    (re.compile(r"INFO: task .*?:\d+"), "INFO: task …"),
    (re.compile(r" Comm:.*$"), ""),
    (re.compile(r", CPU#\d+: .*$"), ""),
    (re.compile(r"CPU: \d+ PID: \d+ at "), "at "),
    (re.compile(r"\[.*:\d+\]$"), ""),
    (re.compile(r"\+0x[0-9a-f]+/0x[0-9a-f]+"), ""),
    (re.compile(r"\b(?:0x)?[0-9a-f]{8,16}\b|0x[0-9a-f]+|(?<=pfn:)[0-9a-f]+"), "…"),
    (re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?=s?\b)"), "N"),
)
"""Parts of a first line that differ from one time to the next."""
_LINE_OF_FILE = re.compile(r"\.[ch]:\d+")
_BEGINS_BEFORE = re.compile(
    r"^(-+\[ cut here \]-+|={40,}|page: ?|vma [0-9a-f]|mm [0-9a-f]{8}|aops:|(?:flags|raw|head): "
    r"|page dumped because: )"
)
"""What dump_page(), dump_vma() and dump_mm() print before a BUG or a WARNING, and its frame."""


def kind_of(line: str) -> Kind | None:
    """Return the kind of complaint that a line begins, or None."""
    if line[:4] not in _HEADS or _OF_A_TASK.match(line):
        return None
    return next((kind for kind in KINDS if re.search(kind.first, line)), None)


def about_mm(kind: Kind, lines: Sequence[str]) -> bool:
    """Whether a report is about memory management.

    A WARNING or BUG at a line of a file: by the file. Other reports: by the functions that they
    name.
    """
    if kind.always_mm:
        return True
    if kind.name in ("warning", "kernel_bug") and _LINE_OF_FILE.search(lines[0]):
        return bool(_MM_FILES.search(lines[0]))
    return any(_MM_FUNCTIONS.search(line) for line in lines if not _STALE.match(line))


def function_of(kind: Kind, lines: Iterable[str]) -> str:
    """Return the function that a report is about: that it names first, and that does not report."""
    if kind.freed:
        return kind.function
    named = (found[1] for line in lines for found in _CALLED.finditer(line))
    return next((name for name in named if not _REPORTERS.match(name)), kind.function or kind.name)


def shape_of(line: str) -> str:
    """Return a first line without what differs each time: addresses, numbers, names of tasks.

    The line of a source file stays: it tells one WARNING of a function from another.
    """
    places = _LINE_OF_FILE.findall(line)
    out = _LINE_OF_FILE.sub("\0", line)
    for pattern, instead in _MOVING:
        out = pattern.sub(instead, out)
    for place in places:
        out = out.replace("\0", place, 1)
    return out.replace("\0", "").strip()


def leads_to(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the last of these lines that belong to the report that begins behind them.

    A WARN() with a message prints the message between its frame and the WARNING.
    """
    first = next((n for n, line in enumerate(lines) if _BEGINS_BEFORE.match(line)), len(lines))
    return tuple(lines[first:])


COMPLAINTS = Invariant(
    id="K1",
    title="the kernel does not complain",
    claim=(
        "The kernel prints no BUG, Oops, WARNING or report of a checker that is built in (KASAN,"
        " lockdep, page_table_check, hung task) about memory management."
    ),
    stated=(
        "check_mm(), kernel/fork.c; print_bad_pte(), mm/memory.c; bad_page(), mm/page_alloc.c;"
        " filemap_unaccount_folio(), mm/filemap.c; VM_WARN_ON and VM_BUG_ON,"
        " include/linux/mmdebug.h; mm/page_table_check.c; kernel/locking/lockdep.c; mm/kasan"
    ),
    not_violations=(
        "A complaint about anything else: it is logged, and holds. A WARNING of an allocator, which"
        " is about its caller. Lines that user space writes to /dev/kmsg: they have another"
        " facility than the kernel's. What was printed before rmapd started."
    ),
    confirmed=(
        "By the kernel's own check, whose text is the evidence. A hung task, a soft lockup, an RCU"
        " stall or a data race (KCSAN) is a suspect: the kernel has measured a time, or an access,"
        " and proven no error."
    ),
    blind_spots=(
        "What this kernel does not check, and what it checks and prints once: WARN_ON_ONCE() before"
        " rmapd started. Records that are overwritten before they are read: each is a check that is"
        " unverifiable. A kernel that stops after its complaint. Silence is no proof: each line"
        " that the kernel prints is one check. A WARNING or BUG of a list, a reference count or an"
        " rwsem counts by its own file, also where memory management calls it; so does a crash of"
        " 6.1 that begins with the name of another fault, such as 'divide error:'."
    ),
    needs=(KERNEL_LOG,),
    lacking={
        "complaint": "the task that was running, its stack and the trail are missing",
        "mm_dropped": "the mm of 'Bad rss-counter state' is not known",
    },
)

INVARIANTS = (COMPLAINTS,)
