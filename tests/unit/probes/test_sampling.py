"""Windows are sampled: what is not booked is counted, opens nothing and accuses nobody; a tree without its lock is seen all the same."""

from __future__ import annotations

import pytest

from tests.support.box import FENTRY, KPROBE, Box, Vma, box

SECOND = 1_000_000_000
OTHER = 0xFFFF888000002000
each_way = pytest.mark.parametrize("ways", [FENTRY, KPROBE], ids=["fentry", "kprobe"])


def sampling(a_second: int, ways: tuple[str, str] = FENTRY) -> Box:
    b = box(ways)
    b.tick(100 * SECOND)
    b.tables.params.set(window_ns=SECOND // a_second)
    return b


def grow(b: Box, vma: Vma) -> None:
    with b.call("expand_downwards", vma.at, 0x1000), b.locked(b.anon_lock(vma.anon_vma)):
        b.tree(vma, vma.anon_vma, enter=False)
        b.tree(vma, vma.anon_vma, enter=True)


def grown(b: Box) -> int:
    return sum(count for line, count in b.seen().items() if line.startswith("expand_downwards"))


def spent(b: Box) -> Vma:
    """A VMA that has grown until nothing is left for its function."""
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for _ in range(3):
        grow(b, vma)
    assert unsampled(b) == {"expand_downwards": 1}, "of one a second"
    return vma


def unsampled(b: Box) -> dict[str, int]:
    return {name: count for name, count in b.tables.allowances.unsampled().items() if count}


def outside(b: Box) -> list[str]:
    return [line for line in b.seen() if line.startswith("outside")]


@each_way
def test_what_is_above_the_allowance_is_counted_and_not_booked(ways: tuple[str, str]) -> None:
    b = sampling(10, ways)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for _ in range(50):
        grow(b, vma)
    assert (grown(b), unsampled(b)) == (11, {"expand_downwards": 39}), "a second's worth and one"
    assert len(b.seen()) == 1, "no step of theirs is booked elsewhere"
    assert b.tables.window_times.windows()["expand_downwards"].count == 11
    assert (b.held_rwsems(), b.open_windows()) == (0, 0)


def test_the_allowance_comes_back_with_time() -> None:
    b = sampling(10)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for _ in range(1000):
        grow(b, vma)
        b.tick(SECOND // 100)
    assert 100 <= grown(b) <= 112, "ten seconds at ten a second"
    assert grown(b) + unsampled(b)["expand_downwards"] == 1000
    b.tick(3600 * SECOND)
    before = grown(b)
    for _ in range(50):
        grow(b, vma)
    assert grown(b) - before == 11, "what was not used in an hour is not saved up"


def test_what_is_left_and_what_was_earned_are_not_both_saved_up() -> None:
    b = sampling(10)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    grow(b, vma)
    b.tick(3600 * SECOND)
    for _ in range(50):
        grow(b, vma)
    assert grown(b) == 1 + 11


def test_what_takes_all_locks_is_always_booked() -> None:
    """mm_drop_all_locks() gives back what mm_take_all_locks() took: one without the other would leave them down as held."""
    b = sampling(1)
    for _ in range(20):
        for name in ("mm_take_all_locks", "mm_drop_all_locks"):
            with b.call(name, b.mm):
                pass
    assert (sum(b.seen().values()), unsampled(b)) == (40, {})


def test_each_function_has_its_own() -> None:
    b = sampling(1)
    vma = spent(b)
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert "__split_vma[anon ok]" in b.seen()


@each_way
def test_what_runs_in_such_a_window_opens_none(ways: tuple[str, str]) -> None:
    b = sampling(1, ways)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for _ in range(10):
        with (
            b.call("__split_vma", b.mm, vma.at, 0x3000, 0),
            b.call("anon_vma_clone", 0, vma.at),
            b.call("unlink_anon_vmas", vma.at),
        ):
            pass
    assert sum(b.seen().values()) == 2 * 3, "each in the window around it"
    assert unsampled(b) == {"__split_vma": 8, "anon_vma_clone": 8, "unlink_anon_vmas": 8}
    assert b.open_windows() == 0


@each_way
def test_what_has_nothing_to_do_is_not_counted_and_ends_what_was_left_unseen(
    ways: tuple[str, str],
) -> None:
    b = sampling(1, ways)
    vma, idle = b.vma(0x1000, 0x3000, anon=b.anon_vma()), b.vma(0x3000, 0x5000)
    for _ in range(3):
        with b.call("unlink_anon_vmas", vma.at), b.call("unlink_file_vma", idle.at):
            pass
        with b.call("unlink_anon_vmas", idle.at):
            pass
    assert (b.seen(), unsampled(b), b.counter("WINDOWS_UNCLOSED")) == (
        {"unlink_anon_vmas[anon]": 2},
        {"unlink_anon_vmas": 1},
        0,
    )
    b.miss("unlink_anon_vmas", vma.at)
    with b.call("unlink_anon_vmas", idle.at):
        pass
    assert b.counter("WINDOWS_UNCLOSED") == 1


@pytest.mark.parametrize(
    ("state", "said"),
    [("own", ""), ("free", "anon-(-)"), ("other", "anon-(x)"), ("read", "anon-(r)")],
)
def test_a_tree_that_changes_without_its_lock_is_booked_by_itself(state: str, said: str) -> None:
    b = sampling(1)
    vma = spent(b)
    with b.call("expand_downwards", vma.at, 0x1000):
        if state != "free":
            b.held(
                b.anon_lock(vma.anon_vma),
                write=state != "read",
                by=b.task if state == "own" else OTHER,
            )
        b.tree(vma, vma.anon_vma, enter=False)
    assert outside(b) == ([f"outside[]  {said}"] if said else [])


def test_outside_of_it_a_tree_step_is_booked_as_ever() -> None:
    b = sampling(1)
    vma = spent(b)
    b.held(b.anon_lock(vma.anon_vma))
    b.tree(vma, vma.anon_vma, enter=False)
    assert len(outside(b)) == 1


@each_way
def test_a_return_that_is_missed_does_not_blind(ways: tuple[str, str]) -> None:
    b = sampling(1, ways)
    vma = spent(b)
    b.miss("expand_downwards", vma.at, 0x1000)
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert b.seen()["__split_vma[anon ok]"] == 1, "no deeper on the stack: the other is over"
    assert b.counter("WINDOWS_UNCLOSED") == 1


def test_nor_for_longer_than_its_function_stays_away() -> None:
    b = sampling(1)
    vma = spent(b)
    b.miss("expand_downwards", vma.at, 0x1000)
    b.tick(2 * SECOND)
    b.calls.append("a system call with more on the stack")
    before = grown(b)
    grow(b, vma)
    assert grown(b) == before + 1, "none of these functions recurses"


@pytest.mark.parametrize(
    ("seconds", "a_second", "booked"),
    [(3, 1, 0), (30, 1, 1), (3, 0, 1)],
    ids=["soon", "later", "no more sampled"],
)
def test_nor_for_ever(seconds: int, a_second: int, booked: int) -> None:
    b = sampling(1)
    vma = spent(b)
    b.miss("expand_downwards", vma.at, 0x1000)
    b.tick(seconds * SECOND)
    b.tables.params.set(window_ns=a_second * SECOND)
    b.calls.append("a system call with more on the stack")
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert (
        sum(count for line, count in b.seen().items() if line.startswith("__split_vma")) == booked
    )
    assert b.counter("WINDOWS_UNCLOSED") == booked


def test_nor_from_before_a_change_of_hooks() -> None:
    b = sampling(1)
    vma = spent(b)
    b.enter("expand_downwards", vma.at, 0x1000)
    with b.tables.epochs.changing_hooks(windows=True, mmap_locks=False):
        b.calls.pop()
    b.calls.append("deeper")
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert b.seen()["__split_vma[anon ok]"] == 1


def test_one_task_in_such_a_window_is_not_all() -> None:
    b = sampling(1)
    vma = spent(b)
    b.enter("expand_downwards", vma.at, 0x1000)
    b.become(8)
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert b.seen()["__split_vma[anon ok]"] == 1
