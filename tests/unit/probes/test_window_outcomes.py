"""Comparison of the state before and after a window, rebuilt windows and the pieces of dup_mmap.

Compared are the geometry of the VMA, its anon_vma and the return value.
"""

from __future__ import annotations

import pytest

from tests.support.box import ENOMEM, ENOMEM_POINTER, FENTRY, KPROBE, Box, Vma, box

each_method = pytest.mark.parametrize("methods", [FENTRY, KPROBE], ids=["fentry", "kprobe"])
STACK_SETUP = 0x18000  # VM_SEQ_READ | VM_RAND_READ


def one(b: Box) -> str:
    """Return the only window that was recorded."""
    (line,) = b.seen()
    return line


def shaped(
    before: tuple[int, int],
    after: tuple[int, int],
    function: str,
    *args: int,
    pgoff: int | None = None,
    flags: int = 0,
) -> str:
    """Return the window of a function that moves its first VMA argument from before to after.

    pgoff: the new vm_pgoff in pages; None: it follows the start.
    """
    b = box()
    vma = b.vma(*before, flags=flags)
    slots = {
        "expand_downwards": (vma.at, *args),
        "vma_shrink": (0, vma.at, *args),
        "__split_vma": (b.mm, vma.at, *args),
    }
    slots |= {"__vma_adjust": (vma.at, *args), "do_brk_flags": (0, vma.at, *args)}
    with b.call(function, *slots[function]):
        b.change(
            vma,
            vm_start=after[0],
            vm_end=after[1],
            vm_pgoff=after[0] >> 12 if pgoff is None else pgoff,
        )
    return one(b)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ((0x3000, 0x9000), "ok"),
        ((0x1000, 0x9000), "moved ok"),
        ((0x3000, 0x3000), "moved geometry=empty"),
        ((0x9000, 0x3000), "moved geometry=empty"),
        ((0x3000, 0x8001), "moved geometry=unaligned"),
        ((0x2800, 0x9000), "moved geometry=unaligned"),
    ],
)
def test_vma_with_an_empty_or_unaligned_range_has_bad_geometry(
    after: tuple[int, int], words: str
) -> None:
    assert shaped((0x3000, 0x9000), after, "do_brk_flags") == f"do_brk_flags[{words}]"


@pytest.mark.parametrize(
    ("pgoff", "flags", "words"),
    [
        (2, 0, "moved ok"),
        (3, 0, "moved geometry=pgoff"),
        (3, STACK_SETUP, "moved ok"),
        (3, 0x8000, "moved geometry=pgoff"),
        (3, 0x10000, "moved geometry=pgoff"),
    ],
)
def test_vm_pgoff_follows_vm_start_except_in_the_stack_of_execve(
    pgoff: int, flags: int, words: str
) -> None:
    assert (
        shaped((0x3000, 0x9000), (0x2000, 0x9000), "__vma_adjust", pgoff=pgoff, flags=flags)
        == f"__vma_adjust[{words}]"
    )


@pytest.mark.parametrize(
    ("function", "args", "after", "words"),
    [
        ("vma_shrink", (0x3000, 0x8000), (0x3000, 0x8000), "moved ok"),
        ("vma_shrink", (0x3000, 0x8000), (0x3000, 0x7000), "moved geometry=not_as_asked"),
        ("vma_shrink", (0x4000, 0x9000), (0x3000, 0x9000), "geometry=not_as_asked"),
        ("vma_shrink", (0x4000, 0x9000), (0x4000, 0x9000), "moved ok"),
        ("vma_shrink", (0, 0x8000), (0x3000, 0x8000), "moved ok"),
        ("expand_downwards", (0x2000,), (0x2000, 0x9000), "moved ok"),
        ("expand_downwards", (0x2000,), (0x1000, 0x9000), "moved ok"),
        ("expand_downwards", (0x2000,), (0x3000, 0x9000), "geometry=not_as_asked"),
        ("__split_vma", (0x5000, 0), (0x3000, 0x5000), "moved ok"),
        ("__split_vma", (0x5000, 0), (0x5000, 0x9000), "moved geometry=not_as_asked"),
        ("__split_vma", (0x5000, 1), (0x5000, 0x9000), "moved ok"),
        ("__split_vma", (0x5000, 1), (0x3000, 0x5000), "moved geometry=not_as_asked"),
        (
            "__split_vma",
            (0x5000, 0xDEAD_0000_0000),
            (0x3000, 0x5000),
            "moved ok",
        ),  # `int new_below`: the upper half of the register is undefined
    ],
)
def test_vma_range_that_differs_from_the_arguments_has_bad_geometry(
    function: str, args: tuple[int, ...], after: tuple[int, int], words: str
) -> None:
    assert shaped((0x3000, 0x9000), after, function, *args) == f"{function}[{words}]"


@pytest.mark.parametrize(
    ("other", "word"),
    [((0x5000, 0x9000), "ok"), ((0x4000, 0x9000), "geometry=overlap"), ((0x2000, 0x3000), "ok")],
)
def test_overlapping_halves_of_a_split_have_bad_geometry(other: tuple[int, int], word: str) -> None:
    b = box()
    vma = b.vma(0x3000, 0x9000)
    with b.call("__split_vma", b.mm, vma.at, 0x5000, 0):
        b.change(vma, vm_end=0x5000)
        b.store(b.vma(*other))
    assert one(b) == f"__split_vma[moved {word}]  commit(mmap:-)"


def test_geometry_of_a_failed_window_is_not_checked() -> None:
    b = box()
    vma = b.vma(0x3000, 0x9000)
    with b.call("__split_vma", b.mm, vma.at, 0x5000, 0, returned=ENOMEM):
        b.change(vma, vm_end=0x3000)
    assert one(b) == "__split_vma[moved] -ENOMEM"


def test_window_of_a_hugetlb_vma_is_marked_hugetlb() -> None:
    b = box()
    with b.call("do_brk_flags", 0, b.vma(0x3000, 0x9000, flags=0x400000).at):
        pass
    assert one(b) == "do_brk_flags[hugetlb ok]"


def test_window_of_a_null_vma_uses_the_mm_of_the_task() -> None:
    b = box()
    b.held(b.mmap_lock)
    with b.call("do_brk_flags", 0, 0, 0x3000, 0x1000):
        pass
    assert one(b) == "do_brk_flags[mmap:w]", "the mm is that of the task"


@each_method
def test_error_is_decoded_by_the_return_type_of_the_function(methods: tuple[str, str]) -> None:
    b = box(methods)
    vma, pointer = b.vma(0x1000, 0x3000), b.take(8)
    b.chain(vma.at, to=b.take(64))
    b.put(pointer, vma.at)
    for function, args in (("copy_vma", (pointer, 0, 0)), ("vma_merge", (b.mm, 0, 0, 0))):
        for returned in (0, ENOMEM_POINTER, vma.at, ENOMEM):
            with b.call(function, *args, returned=returned):
                pass
    for returned in (0, ENOMEM, ENOMEM_POINTER, 0xDEAD_0000_0000, 1, (1 << 32) - 5000):
        with b.call("anon_vma_clone", 0, 0, returned=returned):
            pass
    with b.call("unlink_anon_vmas", vma.at, returned=ENOMEM):
        pass
    assert b.seen() == {
        "copy_vma[]": 2,
        "copy_vma[] -NULL": 1,
        "copy_vma[] -ENOMEM": 1,
        "vma_merge[]": 2,
        "vma_merge[] -NULL": 1,
        "vma_merge[] -ENOMEM": 1,
        "anon_vma_clone[]": 4,
        "anon_vma_clone[] -ENOMEM": 2,
        "unlink_anon_vmas[]": 1,
    }


@each_method
def test_moved_vma_without_the_anon_vma_of_its_source_is_marked(methods: tuple[str, str]) -> None:
    b = box(methods)
    root = b.anon_vma()
    source, pointer = b.vma(0x1000, 0x3000, anon=root), b.take(8)
    b.put(pointer, source.at)
    for anon in (root, b.anon_vma(root), b.anon_vma(), 0):
        with b.call(
            "copy_vma", pointer, 0x9000, 0x2000, returned=b.vma(0x9000, 0xB000, anon=anon).at
        ):
            pass
    assert b.seen() == {
        "copy_vma[anon follows]": 2,
        "copy_vma[anon follows=other]": 1,
        "copy_vma[anon follows=missing]": 1,
    }


def merged(b: Box, target: Vma, *removed: Vma, anon: int = 0, returned: int = 0) -> str:
    """Return the window of a __vma_adjust() that merges the removed VMAs into target.

    anon: the anon_vma of target after the merge.
    """
    with b.call("__vma_adjust", target.at, 0x1000, 0x5000, 1, 0, 0, returned=returned):
        for vma in removed:
            with b.call("unlink_anon_vmas", vma.at):
                pass
        b.change(target, anon_vma=anon, vm_end=0x5000)
    return next(line for line in b.seen() if line.startswith("__vma_adjust"))


def test_merged_vma_without_the_anon_vma_of_a_removed_vma_is_marked() -> None:
    calls = "  unlink_anon_vmas()"
    for anon, words in (
        ("its own", "anon=imported moved ok follows"),
        ("none", "moved ok follows=missing"),
    ):
        b = box()
        gone = b.vma(0x3000, 0x5000, anon=b.anon_vma())
        line = merged(
            b, b.vma(0x1000, 0x3000), gone, anon=gone.anon_vma if anon == "its own" else 0
        )
        assert line == f"__vma_adjust[{words}]{calls}"
    b = box()
    other = b.anon_vma()
    gone = b.vma(0x3000, 0x5000, anon=b.anon_vma())
    assert (
        merged(b, b.vma(0x1000, 0x3000, anon=other), gone, anon=other)
        == f"__vma_adjust[anon moved ok follows=other]{calls}"
    )


def test_removed_vma_without_anon_vma_is_ignored_when_a_merge_is_checked() -> None:
    """__vma_adjust() with remove_next 2 removes two VMAs, and one or none has an anon_vma."""
    b = box()
    gone = b.vma(0x3000, 0x4000, anon=b.anon_vma())
    line = merged(b, b.vma(0x1000, 0x3000), gone, b.vma(0x4000, 0x5000))
    assert line == "__vma_adjust[moved ok follows=missing]  unlink_anon_vmas()"
    b = box()
    assert merged(b, b.vma(0x1000, 0x3000), b.vma(0x3000, 0x5000)) == "__vma_adjust[moved ok]"


@each_method
def test_call_without_work_is_not_a_window(methods: tuple[str, str]) -> None:
    """A VMA without anon_vma and vm_file gives these functions no work.

    A VMA with a chain and no anon_vma would be inconsistent, so its window is recorded.
    """
    b = box(methods)
    idle, wrong = b.vma(0x1000, 0x3000), b.vma(0x3000, 0x5000)
    b.chain(wrong.at, to=b.take(64))
    anon, file = (
        b.vma(0x5000, 0x7000, anon=b.anon_vma()),
        b.vma(0x7000, 0x9000, mapping=b.mapping()),
    )
    for vma in (idle, wrong, anon, file):
        for function, *args in (
            ("unlink_anon_vmas", vma.at),
            ("unlink_file_vma", vma.at),
            ("anon_vma_fork", b.vma(0, 0x1000).at, vma.at),
        ):
            with b.call(function, *args):
                pass
    assert b.seen() == {
        "unlink_anon_vmas[]": 1,
        "unlink_anon_vmas[anon]": 1,
        "anon_vma_fork[]": 1,
        "anon_vma_fork[anon]": 1,
        "unlink_file_vma[file]": 1,
    }
    assert b.counter("WINDOWS_UNCLOSED") == 0


def test_return_of_an_inner_call_without_work_does_not_end_the_window() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    with b.call("__vma_adjust", vma.at, 0x1000, 0x3000, 1, 0, 0):
        with b.call("unlink_anon_vmas", b.vma(0x3000, 0x5000).at):
            pass
        with b.locked(b.anon_lock(vma.anon_vma)):
            pass
    assert one(b) == "__vma_adjust[anon ok]  anon↓w anon↑w"


def test_failed_merge_is_not_checked_for_the_anon_vma() -> None:
    b = box()
    gone = b.vma(0x3000, 0x5000, anon=b.anon_vma())
    line = merged(b, b.vma(0x1000, 0x3000), gone, returned=ENOMEM)
    assert line == "__vma_adjust[moved] -ENOMEM  unlink_anon_vmas()"


def test_lock_of_an_imported_anon_vma_is_recorded_after_the_import() -> None:
    b = box()
    vma, anon = b.vma(0x1000, 0x3000), b.anon_vma()
    with b.call("__vma_adjust", vma.at, 0x1000, 0x4000, 1, 0, 0):
        b.change(vma, anon_vma=anon, vm_end=0x4000)
        b.held(b.anon_lock(anon))
        b.store(vma)
    assert one(b) == "__vma_adjust[anon=imported moved ok]  commit(mmap:- anon:w) → [anon:w]"
    (flight,) = b.tables.flight_recorder.flights()
    assert flight.row.anon == b.anon_lock(anon)


def test_window_of_a_merge_reports_the_vma_that_expands() -> None:
    """The argument `expand` of __vma_adjust() grows, and its `vma` is removed."""
    b = box()
    vma, expand = b.vma(0x3000, 0x5000), b.vma(0x1000, 0x3000)
    with b.call("__vma_adjust", vma.at, 0x1000, 0x5000, 1, 0, expand.at):
        b.change(expand, vm_end=0x5000)
    assert one(b) == "__vma_adjust[moved ok]"
    assert b.tables.flight_recorder.flights()[0].row.vma == expand.at


@each_method
def test_vma_expand_is_rebuilt_from_the_functions_it_calls(methods: tuple[str, str]) -> None:
    """vma_adjust_trans_huge(), which vma_expand() of 6.1 calls, begins the window.

    perf_event_mmap(), which the caller calls after vma_expand(), ends it.
    """
    b = box(methods)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    b.touch("vma_adjust_trans_huge", vma.at, 0x1000, 0x4000, 0)
    with b.locked(b.anon_lock(vma.anon_vma)):
        b.change(vma, vm_end=0x4000)
        b.store(vma)
    b.touch("perf_event_mmap", vma.at)
    b.touch("khugepaged_enter_vma", vma.at)
    assert b.seen() == {"vma_expand[anon moved rebuilt ok]  anon↓w commit(mmap:- anon:w) anon↑w": 1}
    assert (b.open_windows(), b.counter("WINDOWS_UNCLOSED")) == (0, 0)


def test_rebuilt_window_with_a_wrong_range_has_bad_geometry() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    b.touch("vma_adjust_trans_huge", vma.at, 0x1000, 0x4000, 0)
    b.touch("perf_event_mmap", vma.at)
    assert one(b) == "vma_expand[rebuilt geometry=not_as_asked]"


def test_functions_called_inside_of_a_window_do_not_rebuild_another() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    with b.call("__vma_adjust", vma.at, 0x1000, 0x3000, 1, 0, 0):
        b.touch("vma_adjust_trans_huge", vma.at, 0x1000, 0x3000, 0)
        b.touch("perf_event_mmap", vma.at)
    assert b.seen() == {"__vma_adjust[ok]": 1}


@each_method
def test_dup_mmap_is_cut_into_pieces_at_each_vm_area_dup(methods: tuple[str, str]) -> None:
    b = box(methods)
    child, vma = b.take(256), b.vma(0x1000, 0x3000)
    with b.call("dup_mmap", child, b.mm), b.locked(b.mmap_lock, b.mm_lock(child)):
        for _ in range(3):
            b.touch("vm_area_dup", vma.at)
    assert b.seen() == {
        "dup_mmap[piece]  mmap↓w mmap2↓w → [mmap:w]": 1,
        "dup_mmap[piece mmap:w]": 2,
        "dup_mmap[piece mmap:w]  mmap2↑w mmap↑w → []": 1,
    }
    assert b.tables.window_times.windows()["dup_mmap"].count == 1


def test_pieces_of_dup_mmap_classify_their_locks_separately() -> None:
    b = box()
    child = b.take(256)
    vmas = [
        b.vma(0x1000 * n, 0x1000 * n + 0x1000, anon=b.anon_vma(), mapping=b.mapping())
        for n in (1, 2)
    ]
    with b.call("dup_mmap", child, b.mm):
        for vma in vmas:
            b.touch("vm_area_dup", vma.at)
            with b.locked(b.anon_lock(vma.anon_vma)), b.locked(b.file_lock(vma.mapping)):
                b.file_tree(vma, enter=True)
    piece = "anon↓w i_mmap↓w file+ i_mmap↑w anon↑w"
    assert b.seen() == {"dup_mmap[piece]": 1, f"dup_mmap[piece]  {piece}": 2}


def test_vm_area_dup_outside_of_dup_mmap_does_not_cut_the_window() -> None:
    b = box()
    vma = b.vma(0x3000, 0x9000)
    with b.call("__split_vma", b.mm, vma.at, 0x5000, 0):
        b.touch("vm_area_dup", vma.at)
        b.change(vma, vm_end=0x5000)
    assert one(b) == "__split_vma[moved ok]"


@each_method
def test_rebuilt_dup_mmap_recognizes_the_mmap_lock_of_the_child(methods: tuple[str, str]) -> None:
    """uprobe_start_dup_mmap() has no argument.

    The mm of the child is recognized as a younger mm with a single user.
    """
    b = box(methods)
    child = b.take(256)
    for mm, number in ((b.mm, 5), (child, 6)):
        b.set(mm, "mm_struct.context.ctx_id", number)
        b.set(mm, "mm_struct.mm_users", 1)
    b.touch("uprobe_start_dup_mmap")
    with b.locked(b.mmap_lock, b.mm_lock(child)):
        b.touch("vm_area_dup", b.vma(0x1000, 0x3000).at)
    b.touch("uprobe_end_dup_mmap")
    assert b.seen() == {
        "dup_mmap[rebuilt piece]  mmap↓w mmap2↓w → [mmap:w]": 1,
        "dup_mmap[rebuilt piece mmap:w]  mmap2↑w mmap↑w → []": 1,
    }
