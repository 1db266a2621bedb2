"""bpf(2) by file descriptor: programs, where they attach, what the kernel says of them. Nothing here knows BCC."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracer.bpf.maps import SYS_BPF, call, libc

_PROG_LOAD, _TEST_RUN, _NEXT_PROG_ID, _PROG_BY_ID, _INFO = 5, 10, 11, 13, 15
_RAW_TRACEPOINT_OPEN, _LINK_CREATE, _ENABLE_STATS, _ITER_CREATE = 17, 28, 32, 33
_TRACE_ITER, _TRACE_FENTRY, _TRACE_FEXIT = 28, 24, 25
_TYPE_KPROBE, _TYPE_RAW_TRACEPOINT, _TYPE_TRACING = 2, 17, 26
_SYS_PERF_EVENT_OPEN, _PERF_ENABLE, _PERF_SET_BPF = 298, 0x2400, 0x40042408
_PERF_ID = 0x80082407
_RUN_SIZE = 72  # of union bpf_attr
_INFO_SIZE = 232  # struct bpf_prog_info up to recursion_misses and verified_insns
_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")

KINDS = {
    "raw_tp": (_TYPE_RAW_TRACEPOINT, 0),
    "run": (_TYPE_RAW_TRACEPOINT, 0),
    "iter": (_TYPE_TRACING, _TRACE_ITER),
    "fentry": (_TYPE_TRACING, _TRACE_FENTRY),
    "fexit": (_TYPE_TRACING, _TRACE_FEXIT),
    "kprobe": (_TYPE_KPROBE, 0),
    "kretprobe": (_TYPE_KPROBE, 0),
}
"""How a program is attached -> (program type, expected attach type)."""


@dataclass(frozen=True)
class RunStatistics:
    """The kernel's own account of a program. runs and seconds need BPF statistics to be on."""

    program_id: int
    runs: int
    seconds: float
    missed: int

    @classmethod
    def total(cls, parts: Sequence[RunStatistics]) -> RunStatistics:
        """Several programs as one."""
        return cls(
            parts[0].program_id,
            sum(p.runs for p in parts),
            sum(p.seconds for p in parts),
            sum(p.missed for p in parts),
        )


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class Program:
    """A loaded program behind a file descriptor. A hundred are asked every second, and a sweep runs one some thousand times: what goes
    to the kernel is laid out once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._context = (ctypes.c_uint64 * 12)()
        run = struct.pack(
            "<IIIIQQIIIIQQ", fd, 0, 0, 0, 0, 0, 0, 0, 96, 0, ctypes.addressof(self._context), 0
        )
        self._run = ctypes.create_string_buffer(run, _RUN_SIZE)
        self._info = ctypes.create_string_buffer(_INFO_SIZE)
        self._ask = ctypes.create_string_buffer(
            struct.pack("<IIQ", fd, _INFO_SIZE, ctypes.addressof(self._info)), 16
        )

    def run(self, *args: int) -> None:
        """Run a raw tracepoint program once, here and now, with these arguments (BPF_PROG_TEST_RUN)."""
        for index, value in enumerate(args):
            self._context[index] = value
        if libc.syscall(SYS_BPF, _TEST_RUN, self._run, _RUN_SIZE) < 0:
            raise _error()

    def attach_raw_tracepoint(self, name: str | None) -> Link:
        """Attach to a raw tracepoint, or (name None) where the program itself says."""
        text = ctypes.create_string_buffer(name.encode()) if name else None
        fd, _ = call(
            _RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(text) if text else 0, self.fd)
        )
        return Link(fd)

    def attach_kprobe(self, symbol: str, *, at_return: bool) -> Link:
        """A kprobe of the perf PMU: the kernel takes it away with the file descriptor, unlike one made through tracefs."""
        function = ctypes.create_string_buffer(symbol.encode())
        attributes = bytearray(128)
        struct.pack_into(
            "<IIQ",
            attributes,
            0,
            int((_KPROBE_PMU / "type").read_text(encoding="utf-8")),
            len(attributes),
            int(at_return),
        )
        struct.pack_into("<QQ", attributes, 56, ctypes.addressof(function), 0)
        buffer = ctypes.create_string_buffer(bytes(attributes), len(attributes))
        fd = libc.syscall(_SYS_PERF_EVENT_OPEN, buffer, -1, 0, -1, 8)
        if fd < 0:
            raise _error()
        try:
            fcntl.ioctl(fd, _PERF_SET_BPF, self.fd)
            fcntl.ioctl(fd, _PERF_ENABLE, 0)
        except OSError:
            os.close(fd)
            raise
        return Link(fd)

    def attach(self, how: str, symbol: str) -> Link | None:
        """Attach where `how` says (KINDS); None for what is only run on demand. Raises OSError with the kernel's reason."""
        if how in ("kprobe", "kretprobe"):
            return self.attach_kprobe(symbol, at_return=how == "kretprobe")
        if how == "iter":
            return self.attach_iterator()
        return (
            None
            if how == "run"
            else self.attach_raw_tracepoint(symbol if how == "raw_tp" else None)
        )

    def attach_iterator(self) -> Iterated:
        fd, _ = call(_LINK_CREATE, struct.pack("<IIII", self.fd, 0, _TRACE_ITER, 0))
        return Iterated(fd)

    def statistics(self) -> RunStatistics:
        self._inform()
        (program_id,) = struct.unpack_from("<I", self._info, 4)
        run_ns, runs, missed = struct.unpack_from("<QQQ", self._info, 192)
        return RunStatistics(program_id, runs, run_ns / 1e9, missed)

    def missed(self) -> int:
        """Runs that the kernel left out because the program was running already."""
        self._inform()
        (missed,) = struct.unpack_from("<Q", self._info, 208)
        return int(missed)

    def _inform(self) -> None:
        """Fill in struct bpf_prog_info, which must come empty: lengths in it would ask for instructions too."""
        ctypes.memset(self._info, 0, _INFO_SIZE)
        if libc.syscall(SYS_BPF, _INFO, self._ask, 16) < 0:
            raise _error()

    def close(self) -> None:
        os.close(self.fd)


class Link:
    """An attachment; closing it detaches. The kernel closes it when the process dies, however it dies."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)


class Iterated(Link):
    """An attached iterator: each read() runs it over all its objects."""

    def read(self) -> bytes:
        fd, _ = call(_ITER_CREATE, struct.pack("<II", self.fd, 0))
        parts = []
        try:
            while part := os.read(fd, 1 << 16):
                parts.append(part)
        finally:
            os.close(fd)
        return b"".join(parts)


def attached_to(fd: int) -> tuple[int, ...]:
    """What an attachment's descriptor stands for: a link's type, id and program, or a perf event's id. Raises OSError where nothing."""
    info = ctypes.create_string_buffer(256)
    ask = ctypes.create_string_buffer(
        struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)), 16
    )
    if libc.syscall(SYS_BPF, _INFO, ask, 16) < 0:
        error = _error()
        if error.errno != errno.EINVAL:
            raise error
        return struct.unpack("<Q", fcntl.ioctl(fd, _PERF_ID, bytes(8)))
    return struct.unpack_from("<III", info)


def enable_statistics() -> int:
    """Turn the kernel's per-program run times on for as long as the returned file descriptor is open."""
    return call(_ENABLE_STATS, struct.pack("<I", 0))[0]


def program_ids() -> Iterator[tuple[int, str]]:
    """(id, name) of every program loaded in this kernel."""
    last = 0
    while True:
        try:
            _, left = call(_NEXT_PROG_ID, struct.pack("<III", last, 0, 0))
        except FileNotFoundError:
            return
        (last,) = struct.unpack_from("<I", left, 4)
        try:
            fd, _ = call(_PROG_BY_ID, struct.pack("<I", last))
        except FileNotFoundError:
            continue
        info = ctypes.create_string_buffer(232)
        try:
            call(_INFO, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
        finally:
            os.close(fd)
        yield last, info.raw[64:80].split(b"\0")[0].decode()


def load_program(name: str, how: str, code: bytes, function_id: int = 0) -> Program:
    """Load instructions. function_id: the BTF id that fentry, fexit and iter attach to. Raises Refused with the verifier's last words,
    OSError where there is no memory."""
    kind, attach_type = KINDS[how]
    try:
        return Program(_load(name, kind, attach_type, code, function_id))
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        log = ctypes.create_string_buffer(1 << 24)
        try:
            os.close(_load(name, kind, attach_type, code, function_id, log))
        except OSError:
            said = [
                line.strip()
                for line in log.value.decode(errors="replace").splitlines()
                if line.strip()
            ]
            words = [line for line in said if not line.startswith("processed ")]
            raise Refused(words[-1][:200] if words else error.strerror or str(error)) from error
        raise Refused(error.strerror or str(error)) from error


class Refused(Exception):
    """The kernel does not take a program; the reason in one line."""


def _load(
    name: str,
    kind: int,
    attach_type: int,
    code: bytes,
    function_id: int,
    log: ctypes.Array[ctypes.c_char] | None = None,
) -> int:
    instructions, licence = (
        ctypes.create_string_buffer(code, len(code)),
        ctypes.create_string_buffer(b"GPL"),
    )
    attributes = struct.pack(
        "<IIQQ", kind, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)
    )
    attributes += struct.pack(
        "<IIQ", 1 if log else 0, len(log) if log else 0, ctypes.addressof(log) if log else 0
    )
    attributes += struct.pack("<II16s", 0, 0, f"rmapd_{name}".encode()[:15])
    attributes += struct.pack("<IIIIQIIQII", 0, attach_type, 0, 0, 0, 0, 0, 0, 0, function_id)
    return call(_PROG_LOAD, attributes)[0]


def fentry_refused(function_id: int) -> str:
    """Why a fentry program on this BTF function cannot be loaded, or empty. Loads and closes an empty program, attaches nothing."""
    try:
        os.close(
            _load(
                "probe",
                _TYPE_TRACING,
                _TRACE_FENTRY,
                struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0),
                function_id,
            )
        )
    except OSError as error:
        return f"fentry programs are refused ({errno.errorcode.get(error.errno or 0, '?')}: {error.strerror})"
    return ""
