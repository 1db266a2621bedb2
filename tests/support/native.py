"""The BPF programs compiled by gcc against harness.h.

The code that runs in the kernel runs in the unit tests, without root or bcc.

usage: python -m tests.support.native FOLDER
Writes kernel.h there: with it clangd and gcc can read probes/ as it is.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.btf_blob import kernel_types
from tracer.attach import plan, resolver, translation_unit
from tracer.attach.relocations import NO_OFFSET
from tracer.kernel.btf import FUNC, Btf
from tracer.kernel.running import Kernel
from tracer.machine import x86_64
from tracer.tables.c_structs import Layouts

ROOT = Path(__file__).parent.parent.parent
PROBES = ROOT / "probes"
HARNESS = Path(__file__).parent / "harness.h"
SIZES = {
    "LEDGER_ROWS": 256,
    "FROZEN_ROWS": 8,
    "VISIT_ROWS": 256,
    "MIGRATION_ROWS": 16,
    "MM_ROWS": 64,
    "ORDER_ROWS": 64,
    "STACK_ROWS": 16,
    "RING_PAGES": 16,
    "FORK_WINDOWS": 32,
    "QUERIES": 64,
    "HITS": 64,
    "UPPERS": 256,
    "LEAVES": 1024,
    "TASKS": 64,
    "PROTOCOL_ROWS": 32,
    "HOLD_ROWS": 64,
    "FLIGHT_ROWS": 8,
}
_FOLD = """
u32 harness_fold(const u8 *steps, u32 n, u8 *to) {
  struct open_window w = {};
  for (u32 i = 0; i < n; i++) append_step(&w, steps[i]);
  memcpy(to, w.key.steps, sizeof(w.key.steps));
  return w.n;
}
"""
REGISTERS = x86_64.MACHINE.registers


@functools.cache
def layouts(page_shift: int = x86_64.PAGE_SHIFT) -> Layouts:
    return Layouts.read(PROBES / "include/shared.h", page_shift)


LAYOUTS = layouts()


class _Map(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("key", ctypes.c_uint32),
        ("value", ctypes.c_uint32),
        ("max", ctypes.c_uint32),
        ("used", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


def synthetic_kernel(types: bytes = b"", page_shift: int = x86_64.PAGE_SHIFT) -> Kernel:
    """Return a kernel that accepts every fentry program and every kprobe."""
    kernel = Kernel(
        "0.0-harness",
        Btf(types or kernel_types()),
        Path("/nonexistent"),
        Path("/nonexistent"),
        lambda _types: "",
        machine=x86_64.MACHINE,
        page_shift=page_shift,
    )
    kernel.symbols = dict.fromkeys(kernel.types.names(FUNC), 1)
    kernel.kprobe_refused = ""
    return kernel


@functools.cache
def attach_plan(types: bytes = b"", page_shift: int = x86_64.PAGE_SHIFT) -> plan.Plan:
    return resolver.make_plan(synthetic_kernel(types, page_shift), [PROBES])


def write_kernel_header(folder: Path, types: bytes = b"") -> Path:
    """Write the header that the loader generates for a kernel, and the sizes of the maps."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = "".join(f"#define {name} {value}\n" for name, value in SIZES.items())
    path = folder / translation_unit.GENERATED
    path.write_text(sizes + attach_plan(types).header)
    return path


@functools.cache
def library(types: bytes = b"", page_shift: int = x86_64.PAGE_SHIFT, **sizes: int) -> ctypes.CDLL:
    """Compile all probe objects: one library for each kernel, page size and set of map sizes."""
    planned = attach_plan(types, page_shift)
    folder = Path(tempfile.mkdtemp(prefix="rmapd-native-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    usable = [probe_object for probe_object in planned.probe_objects if probe_object.usable]
    fold = _FOLD if any(probe_object.name == "vma" for probe_object in usable) else ""
    (folder / "all.c").write_text(
        HARNESS.read_text()
        + translation_unit.source(planned.header, usable, PROBES / "include")
        + fold
    )
    flags = [f"-D{name}={value}" for name, value in (SIZES | sizes).items()]
    command = [
        "gcc",
        "-O1",
        "-g",
        "-shared",
        "-fPIC",
        "-w",
        *flags,
        "-o",
        str(folder / "all.so"),
        str(folder / "all.c"),
    ]
    subprocess.run(command, check=True)
    found = ctypes.CDLL(str(folder / "all.so"))
    found.harness_map.restype = ctypes.POINTER(_Map)
    found.harness_lookup.restype = ctypes.c_void_p
    return found


class NativeMap:
    """A harness map with the interface of tracer.bpf.maps.Table."""

    def __init__(self, lib: ctypes.CDLL, name: str) -> None:
        self._lib, self._map = lib, lib.harness_map(name.encode())
        assert self._map, f"no map {name}"
        m = self._map.contents
        self.key_size, self.value_size, self.max_entries = m.key, m.value, m.max

    def lookup(self, key: bytes) -> bytes | None:
        at = self._lib.harness_lookup(self._map, key)
        return ctypes.string_at(at, self.value_size) if at else None

    def rows(self, count: int) -> list[bytes]:
        found = (self.lookup(struct.pack("<I", n)) or b"" for n in range(count))
        return [row.ljust((len(row) + 7) // 8 * 8, b"\0") for row in found]

    def update(self, key: bytes, value: bytes) -> None:
        if self._lib.harness_update(self._map, key, value):
            raise OSError(7, "full")

    def delete(self, key: bytes) -> bool:
        return not self._lib.harness_delete(self._map, key)

    def take(self, key: bytes) -> bytes | None:
        found = self.lookup(key)
        self.delete(key)
        return found

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        m = self._map.contents
        keys, values = (
            ctypes.string_at(m.keys, m.used * m.key),
            ctypes.string_at(m.values, m.used * m.value),
        )
        for n in range(m.used):
            yield keys[n * m.key : (n + 1) * m.key], values[n * m.value : (n + 1) * m.value]

    def prefix(self, count: int) -> bytes:
        return ctypes.string_at(self._map.contents.values, count * self.value_size)

    def load(self, values: bytes) -> None:
        for n in range(len(values) // self.value_size):
            self.update(
                struct.pack("<I", n), values[n * self.value_size : (n + 1) * self.value_size]
            )


_STACKS: dict[int, ctypes.Array[ctypes.c_uint64]] = {}
"""The words at a stack position, where a call has arguments on the stack."""


class NativeProgram:
    """A harness program with the interface of tracer.bpf.programs.Runnable.

    A program on a function has a point, which names the places of the arguments.
    """

    def __init__(self, lib: ctypes.CDLL, name: str, point: plan.AttachPoint | None = None) -> None:
        self._lib, self._point = lib, point
        self._function = getattr(lib, f"rmapd_{name}")
        self.fd: int = lib.harness_program(self._function)
        self._context = (ctypes.c_uint64 * 24)()

    def _patch(self, point: plan.AttachPoint) -> None:
        """Set the constants and places that tracer.attach.relocations writes into instructions."""
        names = attach_plan().names
        constants = (ctypes.c_uint64 * 1024).in_dll(self._lib, "harness_constants")
        places = (ctypes.c_int64 * 1024).in_dll(self._lib, "harness_places")
        given = point.constant_values(LAYOUTS.constants)
        for name, number in names.constants.items():
            constants[number & 1023] = given.get(
                name, NO_OFFSET if name.startswith("offset_of_") else 0
            )
        for name, number in names.places.items():
            places[(number & 0xFFF) >> 3] = point.places.get(name, -1)

    def run(self, *args: int) -> None:
        if self._point:
            self._patch(self._point)
        for index, value in enumerate(args):
            self._context[index] = value
        self._lib.harness_run(self._function, ctypes.byref(self._context))

    def call(self, args: tuple[int, ...], stack: int, returned: int | None = None) -> None:
        """Run with the arguments and the return value of a function.

        They are where the kernel has them for this kind of program (fentry, kprobe, kretprobe).
        """
        assert self._point
        how = self._point.how
        if len(args) > 6 and how != "fentry" and how != "fexit":
            # a stack of its own: the seventh argument is above the return address
            above = _STACKS.setdefault(stack, (ctypes.c_uint64 * 16)())
            above[1 : 1 + len(args[6:])] = list(args[6:])
            stack = ctypes.addressof(above)
        if how == "kprobe":
            for offset, value in zip(REGISTERS.arguments, args, strict=False):
                self._context[offset // 8] = value
            self._context[REGISTERS.stack_pointer // 8] = stack
        elif how == "kretprobe":
            self._context[REGISTERS.stack_pointer // 8] = stack + REGISTERS.popped
            self._context[REGISTERS.returned // 8] = returned or 0
        else:
            for index, value in enumerate(args):
                self._context[index] = value
            if returned is not None and "returned" in self._point.places:
                self._context[self._point.places["returned"] // 8] = returned
        self._patch(self._point)
        self._function(ctypes.byref(self._context))


MAPS = tuple(
    """params counters histograms entry_types fork_windows stacks more_stacks
    ledger migrations dying_mms lock_states lock_order hold_turn next_fork_window
    queries uppers leaves hits sweep_state calibration table_page frozen visits visit_clock
    task_windows protocols holds window_times allowances lock_waits lock_holds
    flights next_flight flight_stacks path_stacks object_info
    audit_look audit_programs audit_doubts audit_owned audit_copies audit_writes
    owner_look watched_locks last_waits sleeper_row
    flight_freeze complaint_turns dropped_mms destination destination_table removals""".split()
)
WINDOW_PROBE_OBJECTS = ("vma", "locks", "rmap")
PROGRAMS = tuple(
    """mm_migrate_pages_start mm_migrate_pages
    set_migration_pte remove_migration_pte set_migration_pmd remove_migration_pmd
    sched_process_exit exit_mmap mmap_lock_contended mmap_lock_acquire_returned mmap_lock_released
    walk sweep_upper sweep_leaf calibrate look
    audit_start audit_nodes audit_links audit_copy audit_writer owner_look owner_enters
    lock_wait complaint mm_filemap_delete_from_page_cache""".split()
)


class Native:
    """All maps and programs of one library, empty and with their initial state."""

    def __init__(
        self, types: bytes = b"", /, *, page_shift: int = x86_64.PAGE_SHIFT, **sizes: int
    ) -> None:
        self.lib = library(types, page_shift, **sizes)
        self.lib.harness_reset()
        probe_objects = [one for one in attach_plan(types).probe_objects if one.usable]
        whole = len(probe_objects) == len(attach_plan(types).probe_objects)
        maps = MAPS if whole else [name for name in MAPS if self.lib.harness_map(name.encode())]
        programs = (
            PROGRAMS if whole else [one for one in PROGRAMS if hasattr(self.lib, f"rmapd_{one}")]
        )
        self.maps = {name: NativeMap(self.lib, name) for name in maps}
        self.programs = {name: NativeProgram(self.lib, name) for name in programs}
        methods = [
            hook.methods[0]
            for probe_object in probe_objects
            if probe_object.name in ("ledger", "forks", "complaints", "moves", "page_cache")
            for hook in probe_object.hooks
        ]
        self.programs |= {
            point.program: NativeProgram(self.lib, point.program, point)
            for method in methods
            for point in method.points
        }
        windows = [
            method
            for probe_object in probe_objects
            if probe_object.name in WINDOW_PROBE_OBJECTS
            for hook in probe_object.hooks
            for method in hook.methods
        ]
        self.points = {
            f"{point.how}:{point.symbol}": NativeProgram(self.lib, point.program, point)
            for method in windows
            for point in method.points
        }
        self._buffer = ctypes.create_string_buffer(1 << 16)

    def set(self, name: str, value: int) -> None:
        kind = ctypes.c_uint32 if name == "harness_ring_room" else ctypes.c_uint64
        kind.in_dll(self.lib, name).value = value

    def events(self) -> list[bytes]:
        head, at, found = LAYOUTS.structs["event"], 0, list[bytes]()
        used = self.lib.harness_ring(self._buffer)
        while at < used:
            size = head.size
            kind = head.unpack(self._buffer.raw[at:]).kind
            if kind == LAYOUTS.constants["PROTOCOL_NEW"]:
                size += LAYOUTS.structs["sighting"].size + LAYOUTS.structs["protocol_key"].size
            if kind == LAYOUTS.constants["COMPLAINT"]:
                size += LAYOUTS.structs["complaint_line"].size
            found.append(self._buffer.raw[at : at + size])
            at += size
        return found

    def fold(self, steps: bytes) -> bytes:
        """Return the bytes of a protocol key that append_step() makes of these steps."""
        out = ctypes.create_string_buffer(64)
        self.lib.harness_fold(steps, len(steps), out)
        return out.raw

    def sequence(self) -> bytes:
        used = self.lib.harness_sequence(self._buffer)
        return self._buffer.raw[:used]


if __name__ == "__main__":
    write_kernel_header(Path(sys.argv[1]))
