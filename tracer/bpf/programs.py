"""BPF programs by file descriptor: loading, running on demand, run statistics.

Where a loaded program is attached is tracer.bpf.links. Command numbers and attribute layouts are
those of include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tracer.bpf import links
from tracer.bpf.links import Link
from tracer.bpf.syscall import SYS_BPF, Command, call, last_error, libc, object_info

_TRACE_FENTRY, _TRACE_FEXIT = 24, 25
_TYPE_KPROBE, _TYPE_RAW_TRACEPOINT, _TYPE_TRACING = 2, 17, 26
_RUN_BYTES = 72  # of union bpf_attr
_INFO_BYTES = 232  # struct bpf_prog_info up to recursion_misses and verified_insns
_RUN_TIME_AT, _RECURSION_MISSES_AT = 192, 208  # in it: run_time_ns, run_cnt, recursion_misses
_ARGUMENTS = 12  # u64s of context that a raw tracepoint program is run with
_LOG_BYTES = 1 << 24
_REASON_CHARACTERS = 200
_MOST_INTERRUPTIONS = 5
SHORT = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Errors that are about this machine now, and not about a program."""

KINDS = {
    "raw_tp": (_TYPE_RAW_TRACEPOINT, 0),
    "run": (_TYPE_RAW_TRACEPOINT, 0),
    "iter": (_TYPE_TRACING, links.TRACE_ITER),
    "fentry": (_TYPE_TRACING, _TRACE_FENTRY),
    "fexit": (_TYPE_TRACING, _TRACE_FEXIT),
    "kprobe": (_TYPE_KPROBE, 0),
    "kretprobe": (_TYPE_KPROBE, 0),
    "kprobe.multi": (_TYPE_KPROBE, links.TRACE_KPROBE_MULTI),
}
"""How a program is attached -> (enum bpf_prog_type, expected enum bpf_attach_type)."""


class Runnable(Protocol):
    """A program that runs on demand; the unit tests have one without a kernel."""

    def run(self, *args: int) -> None:
        """Run the program once with these arguments."""
        ...


@dataclass(frozen=True)
class RunStatistics:
    """What the kernel counts of a program.

    runs, seconds: of CPU time; the kernel counts both only while enable_statistics() is in force.
    missed: runs that it left out, counted always.
    """

    program_id: int
    runs: int
    seconds: float
    missed: int

    @classmethod
    def total(cls, parts: Sequence[RunStatistics]) -> RunStatistics:
        """Add up several programs, under the id of the first."""
        return cls(
            parts[0].program_id,
            sum(p.runs for p in parts),
            sum(p.seconds for p in parts),
            sum(p.missed for p in parts),
        )


class Program:
    """A loaded program behind a file descriptor.

    The statistics of a hundred programs are read each second, and a sweep of page tables runs one
    program some thousand times. So the attributes of these system calls are laid out once.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._context = (ctypes.c_uint64 * _ARGUMENTS)()
        context = ctypes.sizeof(self._context), 0, ctypes.addressof(self._context), 0
        run = struct.pack("<IIIIQQIIIIQQ", fd, 0, 0, 0, 0, 0, 0, 0, *context)
        self._run = ctypes.create_string_buffer(run, _RUN_BYTES)
        self._info = ctypes.create_string_buffer(_INFO_BYTES)
        self._info_request = ctypes.create_string_buffer(
            struct.pack("<IIQ", fd, _INFO_BYTES, ctypes.addressof(self._info)), 16
        )

    def run(self, *args: int) -> None:
        """Run a raw tracepoint program once, on this CPU, with these arguments.

        BPF_PROG_TEST_RUN; at most twelve u64s. An argument that is not given keeps its value of the
        last run. Raises OSError.
        """
        for index, value in enumerate(args):
            self._context[index] = value
        if libc.syscall(SYS_BPF, Command.PROG_TEST_RUN, self._run, _RUN_BYTES) < 0:
            raise last_error()

    def attach(self, how: str, symbol: str) -> Link | None:
        """Attach to a symbol; see links.attach()."""
        return links.attach(self.fd, how, symbol)

    def statistics(self) -> RunStatistics:
        """Read what the kernel counted so far. Raises OSError."""
        self._read_info()
        (program_id,) = struct.unpack_from("<I", self._info, 4)
        run_ns, runs, missed = struct.unpack_from("<QQQ", self._info, _RUN_TIME_AT)
        return RunStatistics(program_id, runs, run_ns / 1e9, missed)

    def missed(self) -> int:
        """Read how many runs the kernel left out because the program ran on that CPU already."""
        self._read_info()
        (missed,) = struct.unpack_from("<Q", self._info, _RECURSION_MISSES_AT)
        return int(missed)

    def _read_info(self) -> None:
        """Read struct bpf_prog_info; lengths left in it would ask for the instructions too."""
        ctypes.memset(self._info, 0, _INFO_BYTES)
        if libc.syscall(SYS_BPF, Command.OBJ_GET_INFO_BY_FD, self._info_request, 16) < 0:
            raise last_error()

    def close(self) -> None:
        """Close the descriptor; the program goes with its last one."""
        os.close(self.fd)


def enable_statistics() -> int:
    """Make the kernel count runs and run times of all programs (BPF_ENABLE_STATS).

    It does so while the file descriptor that is returned is open. Raises OSError.
    """
    return call(Command.ENABLE_STATS, struct.pack("<I", 0))[0]


def program_ids() -> Iterator[tuple[int, str]]:
    """Yield (id, name) of each program that this kernel has loaded. Raises OSError."""
    last = 0
    while True:
        try:
            _, left = call(Command.PROG_GET_NEXT_ID, struct.pack("<III", last, 0, 0))
        except FileNotFoundError:
            return
        (last,) = struct.unpack_from("<I", left, 4)
        try:
            program = open_program(last)
        except FileNotFoundError:
            continue
        try:
            info = object_info(program.fd, _INFO_BYTES)
        finally:
            program.close()
        yield last, info[64:80].split(b"\0")[0].decode()


def open_program(program_id: int) -> Program:
    """Open a program that is loaded, by its id. Raises OSError."""
    return Program(call(Command.PROG_GET_FD_BY_ID, struct.pack("<I", program_id))[0])


class Refused(Exception):
    """The kernel refuses a program; the text is its reason in one line."""


def load_program(name: str, how: str, code: bytes, function_id: int = 0) -> Program:
    """Load a program.

    name: the kernel keeps what fits 15 characters behind `rmapd_`. how: a key of KINDS. code: its
    instructions (struct bpf_insn). function_id: BTF id of what fentry, fexit and iter attach to.

    Raises Refused with the verifier's last line, OSError where memory or descriptors are short.
    """
    kind, attach_type = KINDS[how]
    try:
        return Program(_load_patiently(name, kind, attach_type, code, function_id))
    except OSError as error:
        if error.errno in SHORT:
            raise
        raise Refused(_reason(name, kind, attach_type, code, function_id, error)) from error


def _reason(
    name: str, kind: int, attach_type: int, code: bytes, function_id: int, error: OSError
) -> str:
    """Load once more with a log: without one the verifier is faster, and most programs load."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    with_log = None
    try:
        os.close(_load(name, kind, attach_type, code, function_id, log))
    except OSError as refused:
        with_log = refused
    lines = [line.strip() for line in log.value.decode(errors="replace").splitlines()]
    reasons = [line for line in lines if line and not line.startswith("processed ")]
    if with_log and reasons:
        return reasons[-1][:_REASON_CHARACTERS]
    return error.strerror or str(error)


def _load_patiently(name: str, kind: int, attach_type: int, code: bytes, function_id: int) -> int:
    """Load a program. The verifier gives up with EAGAIN where a signal is pending."""
    for _ in range(_MOST_INTERRUPTIONS):
        try:
            return _load(name, kind, attach_type, code, function_id)
        except (BlockingIOError, InterruptedError):
            continue
    return _load(name, kind, attach_type, code, function_id)


def _load(
    name: str,
    kind: int,
    attach_type: int,
    code: bytes,
    function_id: int,
    log: ctypes.Array[ctypes.c_char] | None = None,
) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    addresses = ctypes.addressof(instructions), ctypes.addressof(licence)
    attributes = struct.pack("<IIQQ", kind, len(code) // 8, *addresses)
    to = (1, len(log), ctypes.addressof(log)) if log else (0, 0, 0)
    attributes += struct.pack("<IIQ", *to)
    attributes += struct.pack("<II16s", 0, 0, f"rmapd_{name}".encode()[:15])
    attributes += struct.pack("<IIIIQIIQII", 0, attach_type, 0, 0, 0, 0, 0, 0, 0, function_id)
    return call(Command.PROG_LOAD, attributes)[0]


_RETURN_ZERO = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)


def fentry_refused(function_id: int) -> str:
    """Return why this kernel refuses fentry programs; empty where it takes them.

    function_id: BTF id of a function that is hardly ever called. Loads a program that only returns,
    and attaches it for a moment: arm64 before 6.4 loads such programs and cannot attach them
    (ENOTSUPP from arch_prepare_bpf_trampoline(), which it does not have).
    """
    return _refused(
        "fentry programs", _TYPE_TRACING, _TRACE_FENTRY, _RETURN_ZERO, function_id, attach=True
    )


def plain_load_refused(cast_id: int, type_id: int) -> str:
    """Return why this kernel refuses loads behind bpf_rdonly_cast(); empty where it takes them.

    cast_id: BTF id of that kfunc. type_id: of a struct that begins with a number of eight bytes.
    Loads a program that reads where its first argument points to, and attaches nothing.
    """
    read = struct.pack(
        "<BBhiBBhiBBhiBBhi",
        *(0x79, 0x11, 0, 0),  # r1 = the first argument
        *(0xB7, 2, 0, type_id),  # r2 = type_id
        *(0x85, 0x20, 0, cast_id),  # r0 = bpf_rdonly_cast(r1, r2)
        *(0x79, 0x00, 0, 0),  # r0 = *r0
    )
    return _refused("plain loads", _TYPE_RAW_TRACEPOINT, 0, read + _RETURN_ZERO)


def _refused(
    what: str,
    kind: int,
    attach_type: int,
    code: bytes,
    function_id: int = 0,
    *,
    attach: bool = False,
) -> str:
    """Return why this kernel refuses a program; empty where it takes it. what: is refused then."""
    try:
        program = _load("probe", kind, attach_type, code, function_id)
        try:
            if attach:
                links.attach_raw_tracepoint(program, None).close()
        finally:
            os.close(program)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        return f"{what} are refused ({name}: {error.strerror})"
    return ""
