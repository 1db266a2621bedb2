"""The bpf(2) system call, and what the kernel reports about an object behind a file descriptor.

Command numbers and attribute layouts are those of include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import enum
import os
import struct

from tracer.machine.system_calls import number

SYS_BPF = number("bpf")
_ATTRIBUTE_BYTES = 144  # of the buffer: the kernel writes back into it


class Command(enum.IntEnum):
    """The commands of enum bpf_cmd that rmapd and its tests use."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    PROG_TEST_RUN = 10
    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    BTF_GET_FD_BY_ID = 19
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    LINK_CREATE = 28
    ENABLE_STATS = 32
    ITER_CREATE = 33
    LINK_DETACH = 34


libc = ctypes.CDLL(None, use_errno=True)


def last_error() -> OSError:
    """Return errno of the last call through `libc` as an OSError."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def call(command: Command, attributes: bytes, size: int = 128) -> tuple[int, bytes]:
    """Call bpf(2) once.

    attributes: union bpf_attr; the rest of it is zero. size: bytes of it that the kernel reads.

    Returns (result, the attributes as the kernel left them). Raises OSError.
    """
    buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTE_BYTES)
    result = libc.syscall(SYS_BPF, command, buffer, size)
    if result < 0:
        raise last_error()
    return result, buffer.raw


def object_info(fd: int, size: int, request: bytes = b"") -> bytes:
    """Return what the kernel knows of a map, program, link or BTF (BPF_OBJ_GET_INFO_BY_FD).

    size: bytes of the answer (struct bpf_map_info and so on). request: what the kernel is to find
    at the beginning of that struct: addresses and lengths of buffers that it fills. Raises OSError.
    """
    info = ctypes.create_string_buffer(request, size)
    call(Command.OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", fd, size, ctypes.addressof(info)))
    return info.raw


def object_name(fd: int) -> str:
    """Return a name of the map or program behind fd: its type and its id.

    The name is the same for each descriptor of the object, in each process, while this kernel runs.
    Empty for any other file.
    """
    kind = os.readlink(f"/proc/self/fd/{fd}")
    if kind not in ("anon_inode:bpf-map", "anon_inode:bpf-prog"):
        return ""
    return f"{kind} {struct.unpack_from('<I', object_info(fd, 256), 4)[0]}"
