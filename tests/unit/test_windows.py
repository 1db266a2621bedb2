"""The window programs, compiled by gcc, over VMAs, locks and trees in this process: what they book is what happened."""

from __future__ import annotations

import ctypes
import functools
import struct
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.native import LAYOUTS, Native
from tracer.encoding import Encoding
from tracer.notation import text
from tracer.protocol import Group, Step
from tracer.windows import Windows

ENCODING = Encoding(LAYOUTS)
TASK = 0xFFFF888000001000
SELF, READERS = TASK, 3  # rwsem.owner: a writer's task; RWSEM_READER_OWNED | RWSEM_NONSPINNABLE


@dataclass
class Vma:
    at: int
    anon_vma: int = 0
    mapping: int = 0


@dataclass
class Box:
    """Kernel memory of one mm: structures at the offsets of tests/support/btf_blob.py."""

    native: Native
    memory: list[ctypes.Array[ctypes.c_char]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)  # windows that are open: each is a page deeper on the stack

    def __post_init__(self) -> None:
        self.native.set("harness_task", TASK)
        self.native.set("harness_pid_tgid", 7 << 32 | 7)
        self.native.set("harness_now", 1000)
        params = LAYOUTS.structs["params"]
        self.native.maps["params"].update(struct.pack("<I", 0), params.pack(gate=1))
        self.mm = self.take(256)
        self.windows = Windows(self.native.maps, LAYOUTS)

    def take(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self.memory.append(block)
        return ctypes.addressof(block)

    def put(self, at: int, value: int) -> None:
        ctypes.c_uint64.from_address(at).value = value

    def anon_vma(self) -> int:
        at = self.take(64)
        self.put(at, at)  # root
        return at

    def mapping(self) -> int:
        inode = self.take(192)
        self.put(inode, inode + 32)
        self.put(inode + 32, inode)  # i_data.host
        return inode + 32

    def vma(self, start: int, end: int, *, anon: int = 0, mapping: int = 0) -> Vma:
        at, file = self.take(128), 0
        if mapping:
            file = self.take(64)
            self.put(file + 16, mapping)
        for offset, value in ((8, self.mm), (24, start), (32, end), (48, file), (56, start >> 12), (64, anon)):
            self.put(at + offset, value)
        return Vma(at, anon, mapping)

    @staticmethod
    def anon_lock(anon: int) -> int:
        return anon + 8

    @staticmethod
    def file_lock(mapping: int) -> int:
        return mapping + 40

    @property
    def mmap_lock(self) -> int:
        return self.mm + 128

    def held(self, lock: int, *, write: bool = True) -> None:
        self.put(lock, 1 if write else 1 << 8)
        self.put(lock + 8, SELF if write else READERS)

    def free(self, lock: int) -> None:
        self.put(lock, 0)
        self.put(lock + 8, 0)

    def run(self, hook: str, *args: int, how: str = "fentry") -> None:
        if how == "fentry" and "fexit" in self.native.hooks[hook]:
            self.calls.append(hook)
        leaving = how == "fexit" and hook in self.calls
        if leaving:
            del self.calls[len(self.calls) - self.calls[::-1].index(hook) :]
        window = leaving or (self.calls and self.calls[-1] == hook and how == "fentry")
        self.native.set("harness_stack", (1 << 40) - 4096 * len(self.calls) - (0 if window else 64))
        self.native.hooks[hook][how].run(*args)
        if leaving:
            self.calls.pop()

    def down(self, lock: int) -> None:
        self.run("down_write", lock)
        self.held(lock)

    def up(self, lock: int) -> None:
        self.run("up_write", lock)
        self.free(lock)

    def tree(self, vma: Vma, anon: int, enter: bool) -> None:
        chain = self.take(16)
        self.put(chain, vma.at)
        self.run(f"anon_vma_interval_tree_{'insert' if enter else 'remove'}", chain, anon + 24)

    def store(self, vma: Vma, function: bytes = b"mas_store_prealloc") -> None:
        mas, name = self.take(16), self.take(32)
        self.put(mas, self.mm + 144)
        ctypes.memmove(name, function, len(function))
        self.run("commit", name, mas, 0, vma.at, how="raw_tp")

    def seen(self) -> dict[str, int]:
        return {text(ENCODING.decode(key)): count for key, count in self.windows.rows().items()}

    def counters(self, name: str) -> int:
        raw = self.native.maps["counters"].lookup(struct.pack("<I", LAYOUTS.constants[name]))
        return int.from_bytes(raw or b"", "little")


def box() -> Box:
    return Box(Native())


def adjusted(b: Box, vma: Vma, end: int, *, locked: bool = True) -> None:
    """__vma_adjust() grows an anonymous VMA, as 6.1 does it."""
    b.run("__vma_adjust", vma.at, 0x1000, end, 1, 0, 0)
    if locked:
        b.down(b.anon_lock(vma.anon_vma))
    b.tree(vma, vma.anon_vma, enter=False)
    b.put(vma.at + 32, end)
    b.store(vma)
    b.store(vma)  # the tracepoint fires again for one store
    b.tree(vma, vma.anon_vma, enter=True)
    if locked:
        b.up(b.anon_lock(vma.anon_vma))
    b.run("__vma_adjust", vma.at, 0x1000, end, 1, 0, 0, 0, how="fexit")


def test_a_window_with_its_locks_trees_and_commit() -> None:
    b = box()
    b.held(b.mmap_lock)
    adjusted(b, b.vma(0x1000, 0x3000, anon=b.anon_vma()), 0x4000)
    assert b.seen() == {"__vma_adjust[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:w) anon+ anon↑w": 1}
    assert b.windows.times()["__vma_adjust"].count == 1
    assert b.windows.holds()["anon"].count == 1
    (flight,) = b.windows.flights()
    assert (flight.window, flight.row.was_end, flight.row.vm_end, flight.row.tid) == ("__vma_adjust", 0x3000, 0x4000, 7)


def test_what_is_not_locked_shows_at_every_step() -> None:
    b = box()
    b.held(b.mmap_lock)
    adjusted(b, b.vma(0x1000, 0x3000, anon=b.anon_vma()), 0x4000, locked=False)
    assert b.seen() == {"__vma_adjust[anon moved mmap:w ok]  anon-(-) commit(mmap:w anon:-) anon+(-)": 1}


def test_a_store_that_is_only_prepared_is_no_commit() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    b.run("expand_downwards", vma.at, 0x1000)
    b.store(vma, b"mas_is_span_wr")
    b.run("expand_downwards", vma.at, 0x1000, 0, how="fexit")
    assert b.seen() == {"expand_downwards[ok]": 1}


def test_windows_nest_and_the_inner_one_books_its_steps() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    other = b.vma(0x3000, 0x4000)
    b.run("__split_vma", b.mm, vma.at, 0x2000, 0)
    b.run("anon_vma_clone", other.at, vma.at)
    b.run("anon_vma_clone", other.at, vma.at, 0, how="fexit")
    b.put(vma.at + 32, 0x2000)
    b.run("__split_vma", b.mm, vma.at, 0x2000, 0, 0, how="fexit")
    assert b.seen() == {"anon_vma_clone[]": 1, "__split_vma[moved ok]  anon_vma_clone()": 1}


def test_a_split_at_another_place_is_not_as_asked() -> None:
    b = box()
    vma = b.vma(0x1000, 0x4000)
    b.run("__split_vma", b.mm, vma.at, 0x2000, 0)
    b.put(vma.at + 32, 0x3000)
    b.run("__split_vma", b.mm, vma.at, 0x2000, 0, 0, how="fexit")
    assert b.seen() == {"__split_vma[moved geometry=not_as_asked]": 1}


def test_an_error_has_its_number() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    b.run("__split_vma", b.mm, vma.at, 0x2000, 0)
    b.run("__split_vma", b.mm, vma.at, 0x2000, 0, (1 << 32) - 12, how="fexit")
    assert b.seen() == {"__split_vma[] -ENOMEM": 1}


def test_a_lock_that_is_kept_shows_at_the_return() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    b.run("expand_downwards", vma.at, 0x1000)
    b.down(b.anon_lock(vma.anon_vma))
    b.run("expand_downwards", vma.at, 0x1000, (1 << 32) - 12, how="fexit")
    assert b.seen() == {"expand_downwards[anon] -ENOMEM  anon↓w → [anon:w]": 1}


def test_a_missed_return_is_counted_and_its_window_never() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    b.run("expand_downwards", vma.at, 0x1000)
    b.calls.pop()
    b.run("expand_downwards", vma.at, 0x1000)
    b.run("expand_downwards", vma.at, 0x1000, 0, how="fexit")
    assert b.counters("WINDOWS_UNCLOSED") == 1
    assert b.seen() == {"expand_downwards[ok]": 1}


def test_a_step_that_is_no_deeper_on_the_stack_closes_a_window_left_behind() -> None:
    b = box()
    b.run("expand_downwards", b.vma(0x1000, 0x3000).at, 0x1000)
    b.calls.pop()
    b.native.set("harness_stack", 1 << 40)
    b.native.hooks["down_write"]["fentry"].run(b.take(64) + 32)
    assert b.counters("WINDOWS_UNCLOSED") == 1
    assert b.seen() == {}


def test_a_reader_that_was_here_before_is_not_the_writer() -> None:
    """6.1, ten minutes of soak: a writer has the rwsem a moment before its name is in it, and the last reader's name still is."""
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    b.put(b.anon_lock(vma.anon_vma), 1)
    b.put(b.anon_lock(vma.anon_vma) + 8, TASK | READERS)
    b.tree(vma, vma.anon_vma, enter=False)
    assert b.seen() == {"outside[]  anon-(x)": 1}


def test_tries_count_where_they_succeed() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    lock = b.anon_lock(vma.anon_vma)
    b.run("expand_downwards", vma.at, 0x1000)
    b.run("down_read_trylock", lock, 0, how="fexit")
    b.run("down_write_killable", lock, (1 << 32) - 4, how="fexit")
    b.run("down_read_trylock", lock, 1, how="fexit")
    b.run("up_read", lock)
    b.run("expand_downwards", vma.at, 0x1000, 0, how="fexit")
    assert b.seen() == {"expand_downwards[anon ok]  anon↓r? anon↑r": 1}


def test_locks_are_known_by_what_they_are_part_of() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma(), mapping=b.mapping())
    b.run("expand_downwards", vma.at, 0x1000)
    second = b.mapping()
    for lock in (b.file_lock(vma.mapping), b.file_lock(second), b.anon_lock(b.anon_vma()), second - 32 + 8, second + 48, b.take(64) + 32):
        b.down(lock)
        b.up(lock)
    b.run("expand_downwards", vma.at, 0x1000, 0, how="fexit")
    (line,) = b.seen()
    assert [word.rstrip("↓w") for word in line.split() if word.endswith("↓w")] == [
        "i_mmap",
        "i_mmap2",
        "anon2",
        "i_rwsem",
        "invalidate",
        "other",
    ]


def test_a_tree_step_outside_of_windows() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    b.held(b.anon_lock(vma.anon_vma))
    b.tree(vma, vma.anon_vma, enter=False)
    assert b.seen() == {"outside[]  anon-": 1}


def test_a_tree_that_nobody_can_reach_yet() -> None:
    b = box()
    b.tree(b.vma(0x1000, 0x3000), b.anon_vma(), enter=True)
    assert b.seen() == {"outside[]  anon+(new)": 1}


def test_the_anon_vma_that_a_moved_vma_lost() -> None:
    b = box()
    source, pointer = b.vma(0x1000, 0x3000, anon=b.anon_vma()), b.take(8)
    b.put(pointer, source.at)
    for anon in (source.anon_vma, 0):
        copy = b.vma(0x9000, 0xB000, anon=anon)
        b.run("copy_vma", pointer, 0x9000, 0x2000)
        b.run("copy_vma", pointer, 0x9000, 0x2000, copy.at, how="fexit")
    assert set(b.seen()) == {"copy_vma[anon follows]", "copy_vma[anon follows=missing]"}


def test_dup_mmap_is_cut_where_it_copies() -> None:
    b = box()
    child, vma = b.take(256), b.vma(0x1000, 0x3000)
    b.run("dup_mmap", child, b.mm)
    for lock in (b.mmap_lock, child + 128):
        b.down(lock)
    for _ in range(3):
        b.run("vm_area_dup", vma.at)
    for lock in (child + 128, b.mmap_lock):
        b.up(lock)
    b.run("dup_mmap", child, b.mm, 0, how="fexit")
    assert b.seen() == {
        "dup_mmap[piece]  mmap↓w mmap2↓w → [mmap:w]": 1,
        "dup_mmap[piece mmap:w]": 2,
        "dup_mmap[piece mmap:w]  mmap2↑w mmap↑w → []": 1,
    }
    assert b.windows.times()["dup_mmap"].count == 1


def _unfolded(steps: tuple[Step, ...], flat: list[Step]) -> bool:
    """Whether the folded steps stand for exactly this sequence: every group at least twice, as often as it takes."""

    @functools.cache
    def ends(pattern: tuple[Step, ...], at: int) -> frozenset[int]:
        if not pattern:
            return frozenset((at,))
        head, rest = pattern[0], pattern[1:]
        if not isinstance(head, Group):
            return ends(rest, at + 1) if at < len(flat) and flat[at] == head else frozenset()
        reached, here = set[int](), {at}
        for times in range(1, len(flat) + 1):
            here = {end for start in here for end in ends(head.steps, start) if end > start}
            reached |= here if times > 1 else set()
        return frozenset(end for start in reached for end in ends(rest, start))

    return len(flat) in ends(steps, 0)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from("abcd"), max_size=48).flatmap(lambda base: st.integers(1, 4).map(lambda times: (base * times)[:60])))
def test_folding_loses_nothing_but_the_number_of_repeats(letters: list[str]) -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    step_of = {letter: lock for letter, lock in zip("abcd", ("down_write", "up_write", "down_read", "up_read"), strict=True)}
    lock = b.take(64) + 32
    b.run("expand_downwards", vma.at, 0x1000)
    for letter in letters:
        b.native.maps["holds"].delete(struct.pack("<QQ", lock, 7))
        b.run(step_of[letter], lock)
    b.run("expand_downwards", vma.at, 0x1000, 0, how="fexit")
    ((key, _),) = b.windows.rows().items()
    protocol = ENCODING.decode(key)
    if protocol.overlong:
        return
    names = {"a": "other↓w", "b": "other↑w", "c": "other↓r", "d": "other↑r"}
    flat = [step for letter in letters for step in ENCODING.decode(_key_of(names[letter])).steps]
    assert _unfolded(protocol.steps, flat), text(protocol)


def _key_of(step: str) -> bytes:
    from tracer.notation import parse

    return ENCODING.encode(parse(f"expand_downwards[]  {step}"))
