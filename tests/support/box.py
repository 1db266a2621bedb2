"""Kernel memory of one mm, and a task that calls functions, for the window programs.

VMAs, files, anon_vmas and rwsems are real memory of this process, laid out by the types of
btf_blob.kernel_types().
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

from tests.support.native import LAYOUTS, Native, NativeProgram, synthetic_kernel
from tracer.protocol.codec import Encoding
from tracer.protocol.text import text
from tracer.tables.tables import Tables

ENCODING = Encoding(LAYOUTS)
TASK, OTHER_TASK = 0xFFFF888000001000, 0xFFFF888000002000
READERS = 3  # rwsem.owner: RWSEM_READER_OWNED | RWSEM_NONSPINNABLE
STACK = 1 << 40
ENOMEM = (1 << 32) - 12  # as a function that returns int leaves it in a register
ENOMEM_POINTER = (1 << 64) - 12
FENTRY, KPROBE = ("fentry", "fexit"), ("kprobe", "kretprobe")


@dataclass
class Vma:
    at: int
    anon_vma: int = 0
    mapping: int = 0


@dataclass
class Box:
    """The memory, and the programs run natively.

    methods: how functions are hooked, at entry and at return. A call is a page deeper on the stack
    than its caller.
    """

    native: Native
    types: bytes = b""
    methods: tuple[str, str] = FENTRY
    memory: list[ctypes.Array[ctypes.c_char]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    now: int = 1000

    def __post_init__(self) -> None:
        self._btf = synthetic_kernel(self.types).types
        self.become(7)
        params = LAYOUTS.structs["params"]
        self.native.maps["params"].update(struct.pack("<I", 0), params.pack(gate=1))
        self.mm = self.take(256)
        self.tables = Tables.of(self.native.maps, LAYOUTS)
        self.tick(0)
        self.run_as_task()

    # memory
    def take(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self.memory.append(block)
        return ctypes.addressof(block)

    def offset(self, path: str) -> int:
        found = self._btf.resolve(path)
        assert found, path
        return found.bit_offset // 8

    def put(self, at: int, value: int) -> None:
        ctypes.c_uint64.from_address(at).value = value

    def set(self, at: int, path: str, value: int) -> None:
        self.put(at + self.offset(path), value)

    def run_as_task(self) -> None:
        """Run as a task of this mm, for windows no argument of which leads to it."""
        self.task = self.take(256)
        self.set(self.task, "task_struct.mm", self.mm)
        self.native.set("harness_task", self.task)

    def anon_vma(self, root: int = 0) -> int:
        at = self.take(64)
        self.set(at, "anon_vma.root", root or at)
        return at

    def mapping(self) -> int:
        inode = self.take(192)
        mapping = inode + self.offset("inode.i_data")
        self.set(inode, "inode.i_mapping", mapping)
        self.set(mapping, "address_space.host", inode)
        return mapping

    def inode_lock(self, mapping: int) -> int:
        return mapping - self.offset("inode.i_data") + self.offset("inode.i_rwsem")

    def vma(
        self, start: int, end: int, *, anon: int = 0, mapping: int = 0, mm: int = 0, flags: int = 0
    ) -> Vma:
        at, file = self.take(192), 0
        if mapping:
            file = self.take(64)
            self.set(file, "file.f_mapping", mapping)
        members = {
            "vm_mm": mm or self.mm,
            "vm_start": start,
            "vm_end": end,
            "vm_file": file,
            "vm_pgoff": start >> 12,
        }
        for name, value in (members | {"anon_vma": anon, "vm_flags": flags}).items():
            self.set(at, f"vm_area_struct.{name}", value)
        self.chain(at, anon)
        return Vma(at, anon, mapping)

    def chain(self, vma: int, to: int) -> None:
        """Make the VMA's anon_vma_chain begin there; 0: make it empty."""
        self.set(
            vma,
            "vm_area_struct.anon_vma_chain",
            to or vma + self.offset("vm_area_struct.anon_vma_chain"),
        )

    def change(self, vma: Vma, **members: int) -> None:
        for name, value in members.items():
            self.set(vma.at, f"vm_area_struct.{name}", value)

    def folio(self, mapping: int, *, locked: bool = False) -> int:
        at = self.take(64)
        self.set(at, "folio.mapping", mapping)
        self.set(at, "folio.flags", int(locked))
        return at

    # locks
    def anon_lock(self, anon: int) -> int:
        return anon + self.offset("anon_vma.rwsem")

    def file_lock(self, mapping: int) -> int:
        return mapping + self.offset("address_space.i_mmap_rwsem")

    def mm_lock(self, mm: int) -> int:
        return mm + self.offset("mm_struct.mmap_lock")

    @property
    def mmap_lock(self) -> int:
        return self.mm_lock(self.mm)

    def held(self, lock: int, *, write: bool = True, by: int = 0) -> None:
        """Set an rwsem as held for write, or as read-held, by this task or another one."""
        if self.realtime:
            self._set_rt_lock(lock, 1 << 30 if write else (1 << 31) + 1, by or self.task, write)
            return
        self.put(lock, 1 if write else 1 << 8)
        self.put(lock + 8, (by or self.task) | (0 if write else READERS))

    def free(self, lock: int) -> None:
        if self.realtime:
            self._set_rt_lock(lock, 1 << 31, 0, False)
            return
        self.put(lock, 0)
        self.put(lock + 8, 0)

    @property
    def realtime(self) -> bool:
        return self._btf.resolve("rw_semaphore.rwbase") is not None

    def _set_rt_lock(self, lock: int, readers: int, owner: int, write: bool) -> None:
        """Set an rwsem of PREEMPT_RT; a writer's rtmutex has waiters."""
        ctypes.c_uint32.from_address(lock).value = readers
        at = lock + self.offset("rw_semaphore.rwbase.rtmutex.owner")
        ctypes.c_uint64.from_address(at).value = owner | 1 if write else 0

    # running
    def become(self, tid: int) -> None:
        self.native.set("harness_pid_tgid", tid << 32 | tid)

    def tick(self, ns: int) -> None:
        self.now += ns
        self.native.set("harness_now", self.now)

    def point(self, how: str, function: str) -> NativeProgram | None:
        return self.native.points.get(f"{how}:{function}")

    def _run(
        self,
        how: str,
        function: str,
        args: tuple[int, ...],
        *,
        returned: int | None = None,
        window: bool = False,
    ) -> None:
        program = self.point(how, function)
        if program:
            stack = STACK - 4096 * len(self.calls) - (0 if window else 64)
            self.native.set("harness_stack", stack)
            program.call(args, stack, returned)

    def enter(self, function: str, *args: int) -> None:
        self.calls.append(function)
        self._run(self.methods[0], function, args, window=True)

    def leave(self, function: str, *args: int, returned: int = 0) -> None:
        assert self.calls[-1] == function
        self._run(self.methods[1], function, args, returned=returned, window=True)
        self.calls.pop()

    @contextmanager
    def call(self, function: str, *args: int, returned: int = 0) -> Iterator[SimpleNamespace]:
        """Enter and leave a function; the body may set what it returns."""
        outcome = SimpleNamespace(returned=returned)
        self.enter(function, *args)
        yield outcome
        self.leave(function, *args, returned=outcome.returned)

    def miss(self, function: str, *args: int) -> None:
        """Enter a function and leave it without the program at its return."""
        self.enter(function, *args)
        self.calls.pop()

    def touch(self, function: str, *args: int, returned: int = 0) -> None:
        """Call a function that is no window: run the program at its entry, then at its return."""
        self._run(self.methods[0], function, args)
        self._run(self.methods[1], function, args, returned=returned)

    def fire(self, tracepoint: str, *args: int) -> None:
        self.native.set("harness_stack", STACK - 4096 * len(self.calls) - 64)
        self.native.points[f"raw_tp:{tracepoint}"].run(*args)

    def down(self, lock: int, *, write: bool = True) -> None:
        self.touch("down_write" if write else "down_read", lock)
        self.held(lock, write=write)

    def up(self, lock: int, *, write: bool = True) -> None:
        self.touch("up_write" if write else "up_read", lock)
        self.free(lock)

    @contextmanager
    def locked(self, *locks: int) -> Iterator[None]:
        for lock in locks:
            self.down(lock)
        yield
        for lock in reversed(locks):
            self.up(lock)

    def tree(self, vma: Vma, anon: int, enter: bool) -> None:
        chain = self.take(16)
        self.set(chain, "anon_vma_chain.vma", vma.at)
        self.touch(
            f"anon_vma_interval_tree_{'insert' if enter else 'remove'}",
            chain,
            anon + self.offset("anon_vma.rb_root"),
        )

    def file_tree(self, vma: Vma, enter: bool) -> None:
        root = vma.mapping + self.offset("address_space.i_mmap")
        self.touch(f"vma_interval_tree_{'insert' if enter else 'remove'}", vma.at, root)

    def store(self, vma: Vma, function: bytes = b"mas_store_prealloc") -> None:
        mas, name = self.take(16), self.take(32)
        self.put(mas, self.mm + self.offset("mm_struct.mm_mt"))
        ctypes.memmove(name, function, len(function))
        self.fire("ma_write", name, mas, 0, vma.at)

    # recorded
    def seen(self) -> dict[str, int]:
        return {
            text(ENCODING.decode(key)): count
            for key, count in self.tables.protocol_table.counts().items()
        }

    def counter(self, name: str) -> int:
        raw = self.native.maps["counters"].lookup(struct.pack("<I", LAYOUTS.constants[name]))
        return int.from_bytes(raw or b"", "little")

    def rows(self, name: str) -> int:
        """Return how many rows a map has."""
        return len(list(self.native.maps[name].items()))

    def held_rwsems(self) -> int:
        """Return how many rwsems are recorded as held, by tasks and in the map for more of them."""
        tasks = self.native.maps["task_windows"].items()
        states = (struct.unpack_from("<8Q", value) for _, value in tasks)
        return sum(bool(rwsem) for state in states for rwsem in state) + self.rows("holds")

    def open_windows(self) -> int:
        """Return how many windows are open in all tasks."""
        return sum(
            int.from_bytes(value[_DEPTH : _DEPTH + 4], "little")
            for _, value in self.native.maps["task_windows"].items()
        )


_DEPTH = 272 + 24  # of struct task_windows (probes/include/task_windows.h)


def box(methods: tuple[str, str] = FENTRY, types: bytes = b"", **sizes: int) -> Box:
    return Box(Native(types, **sizes), types, methods)
