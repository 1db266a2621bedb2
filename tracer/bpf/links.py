"""Attachments of programs by file descriptor: links, perf events of kprobes, iterators.

The functions here attach a program that is loaded (tracer.bpf.programs). Each attachment ends with
its last file descriptor, so the kernel detaches everything of a process that dies, however it dies.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Protocol

from tracer.bpf.syscall import Command, call, last_error, libc, object_info
from tracer.machine.system_calls import number

TRACE_ITER, TRACE_KPROBE_MULTI = 28, 42
"""BPF_TRACE_ITER and BPF_TRACE_KPROBE_MULTI of enum bpf_attach_type."""
_MISSED_AT = 32
"""Offset of kprobe_multi.missed in struct bpf_link_info."""
_FD_CLOEXEC = 8  # PERF_FLAG_FD_CLOEXEC
_PERF_EVENT_IOC_ENABLE, _PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408
_PERF_EVENT_IOC_ID = 0x80082407
_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")


class Readable(Protocol):
    """A BPF iterator; the unit tests have one without a kernel."""

    def read(self) -> bytes:
        """Return all that the iterator's program writes in one run over its objects."""
        ...


class Link:
    """An attachment. Closing its file descriptor detaches the program."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Detach."""
        os.close(self.fd)

    def missed(self) -> int:
        """Read how many calls the kernel left out before they reached the program."""
        return 0


class IteratorLink(Link):
    """An attached iterator: its program runs when it is read."""

    def read(self) -> bytes:
        """Run the program over all its objects and return what it wrote. Raises OSError."""
        fd, _ = call(Command.ITER_CREATE, struct.pack("<II", self.fd, 0))
        parts = []
        try:
            while part := os.read(fd, 1 << 16):
                parts.append(part)
        finally:
            os.close(fd)
        return b"".join(parts)


class KprobeMultiLink(Link):
    """A program at the entry of a function, by fprobe."""

    def missed(self) -> int:
        """Read what fprobe counts itself; the program counts the rest. Raises OSError."""
        (missed,) = struct.unpack_from("<Q", object_info(self.fd, 256), _MISSED_AT)
        return int(missed)


_LINKS: dict[str, type[Link]] = {"iter": IteratorLink, "kprobe.multi": KprobeMultiLink}


def link_of(how: str, fd: int) -> Link:
    """Return the attachment behind a descriptor. how: a key of tracer.bpf.programs.KINDS."""
    return _LINKS.get(how, Link)(fd)


def attach(program: int, how: str, symbol: str) -> Link | None:
    """Attach a program to a symbol.

    program: its file descriptor. how: a key of tracer.bpf.programs.KINDS. symbol: of the tracepoint
    or function; fentry, fexit and iter programs know theirs since they were loaded.

    Returns None for `run`: such a program runs on demand only. Raises OSError with the kernel's
    reason.
    """
    if how == "run":
        return None
    if how in ("kprobe", "kretprobe"):
        return attach_kprobe(program, symbol, at_return=how == "kretprobe")
    if how == "kprobe.multi":
        return attach_kprobe_multi(program, symbol)
    if how == "iter":
        return attach_iterator(program)
    return attach_raw_tracepoint(program, symbol if how == "raw_tp" else None)


def attach_raw_tracepoint(program: int, name: str | None) -> Link:
    """Attach to a raw tracepoint, or (name None) where a tracing program was loaded for."""
    text = ctypes.create_string_buffer(name.encode()) if name else None
    attributes = struct.pack("<QI", ctypes.addressof(text) if text else 0, program)
    fd, _ = call(Command.RAW_TRACEPOINT_OPEN, attributes)
    return Link(fd)


def attach_kprobe(program: int, symbol: str, *, at_return: bool) -> Link:
    """Attach to a function's entry or return by a kprobe of the perf PMU.

    The kernel has this PMU since Linux 4.17 (e12f03d7031a "perf/core: Implement the 'perf_kprobe'
    PMU"). Unlike a kprobe that was made through tracefs, it removes the probe with its file
    descriptor.
    """
    function = ctypes.create_string_buffer(symbol.encode())
    pmu_type = int((_KPROBE_PMU / "type").read_text(encoding="utf-8"))
    attributes = bytearray(128)  # struct perf_event_attr: type, size, config; config1, config2
    struct.pack_into("<IIQ", attributes, 0, pmu_type, len(attributes), int(at_return))
    struct.pack_into("<QQ", attributes, 56, ctypes.addressof(function), 0)
    buffer = ctypes.create_string_buffer(bytes(attributes), len(attributes))
    fd = libc.syscall(number("perf_event_open"), buffer, -1, 0, -1, _FD_CLOEXEC)
    if fd < 0:
        raise last_error()
    try:
        fcntl.ioctl(fd, _PERF_EVENT_IOC_SET_BPF, program)
        fcntl.ioctl(fd, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return Link(fd)


def attach_kprobe_multi(program: int, symbol: str) -> KprobeMultiLink:
    """Attach to a function's entry by fprobe.

    The link takes a list of functions; each of ours has a program of its own.
    """
    function = ctypes.create_string_buffer(symbol.encode())
    functions = ctypes.c_uint64(ctypes.addressof(function))
    attributes = struct.pack("<IIII", program, 0, TRACE_KPROBE_MULTI, 0)
    attributes += struct.pack("<IIQQQ", 0, 1, ctypes.addressof(functions), 0, 0)
    fd, _ = call(Command.LINK_CREATE, attributes)
    return KprobeMultiLink(fd)


def attach_iterator(program: int) -> IteratorLink:
    """Attach an iterator to what it was loaded for."""
    fd, _ = call(Command.LINK_CREATE, struct.pack("<IIII", program, 0, TRACE_ITER, 0))
    return IteratorLink(fd)


def attached_to(fd: int) -> tuple[int, ...]:
    """Identify what the descriptor of an attachment stands for.

    Returns the link's type, id and program id; for the perf event of a kprobe, which is no BPF
    object, the event's id. Raises OSError where the descriptor stands for neither.
    """
    try:
        return struct.unpack_from("<III", object_info(fd, 256))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return struct.unpack("<Q", fcntl.ioctl(fd, _PERF_EVENT_IOC_ID, bytes(8)))
