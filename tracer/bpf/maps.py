"""bpf(2) by file descriptor: maps and the ring buffer. Nothing here knows BCC.

Command numbers and attribute layouts are those of include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

SYS_BPF = 321  # x86-64
_LOOKUP, _UPDATE, _DELETE, _TAKE, _LOOKUP_BATCH, _UPDATE_BATCH = 1, 2, 3, 21, 24, 26
_MAP_CREATE, _INFO, _BTF_LOAD, _BTF_BY_ID = 0, 15, 18, 19
_BATCH_BYTES = 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attributes: bytes, size: int = 128) -> tuple[int, bytes]:
    """One call; returns (result, attributes as the kernel left them). Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, 144)
    result = libc.syscall(SYS_BPF, command, buffer, size)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result, buffer.raw


def possible_cpus() -> int:
    """How many values a row of a per-CPU map has."""
    last = (
        Path("/sys/devices/system/cpu/possible").read_text(encoding="utf-8").strip().split(",")[-1]
    )
    return int(last.split("-")[-1]) + 1


class Table(Protocol):
    """A BPF map as the books use it; the unit tests have one without a kernel."""

    key_size: int
    value_size: int
    max_entries: int

    def lookup(self, key: bytes) -> bytes | None: ...
    def update(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> bool: ...
    def take(self, key: bytes) -> bytes | None: ...
    def items(self) -> Iterator[tuple[bytes, bytes]]: ...
    def rows(self, count: int) -> list[bytes]: ...
    def prefix(self, count: int) -> bytes: ...
    def load(self, values: bytes) -> None: ...


class Runnable(Protocol):
    """A program that is run on demand."""

    def run(self, *args: int) -> None: ...


class Readable(Protocol):
    """A BPF iterator."""

    def read(self) -> bytes: ...


class Map:
    """A map behind a file descriptor. Keys and values are bytes."""

    def __init__(
        self, fd: int, kind: int, key_size: int, value_size: int, max_entries: int, cpus: int = 1
    ) -> None:
        self.fd, self.kind = fd, kind
        self.key_size, self.value_size, self.max_entries = key_size, value_size, max_entries
        self._cpus = cpus
        self._per_cpu_value = (value_size + 7) // 8 * 8
        self._key = ctypes.create_string_buffer(max(key_size, 8))
        self._value = ctypes.create_string_buffer(max(value_size, self._per_cpu_value * cpus, 8))

    def _element(self, flags: int = 0) -> bytes:
        return struct.pack(
            "<IIQQQ", self.fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), flags
        )

    def lookup(self, key: bytes) -> bytes | None:
        self._key.raw = key.ljust(len(self._key), b"\0")
        try:
            call(_LOOKUP, self._element())
        except FileNotFoundError:
            return None
        return self._value.raw[: self.value_size]

    def rows(self, count: int) -> list[bytes]:
        """The rows 0 … count-1 of a per-CPU array, read in batches: in each the values of all possible CPUs, padded to eight bytes."""
        size, found = self._per_cpu_value * self._cpus, list[bytes]()
        for _, values, some in self._batch(
            _LOOKUP_BATCH, min(count, max(1, _BATCH_BYTES // size)), size
        ):
            found += [values[n * size : (n + 1) * size] for n in range(some)]
            if len(found) >= count:
                break
        return found[:count]

    def update(self, key: bytes, value: bytes) -> None:
        self._key.raw = key.ljust(len(self._key), b"\0")
        self._value.raw = value.ljust(len(self._value), b"\0")
        call(_UPDATE, self._element())

    def delete(self, key: bytes) -> bool:
        """Whether the key was there."""
        self._key.raw = key.ljust(len(self._key), b"\0")
        try:
            call(_DELETE, struct.pack("<IIQ", self.fd, 0, ctypes.addressof(self._key)))
        except FileNotFoundError:
            return False
        return True

    def take(self, key: bytes) -> bytes | None:
        """Look up and delete in one step (BPF_MAP_LOOKUP_AND_DELETE_ELEM, hash maps since 5.14): what a program changes is not lost."""
        self._key.raw = key.ljust(len(self._key), b"\0")
        try:
            call(_TAKE, self._element())
        except FileNotFoundError:
            return None
        return self._value.raw[: self.value_size]

    def _batch(
        self, command: int, limit: int, value_size: int
    ) -> Iterator[tuple[bytes, bytes, int]]:
        keys = ctypes.create_string_buffer(self.key_size * limit)
        values = ctypes.create_string_buffer(value_size * limit)
        token, first = ctypes.create_string_buffer(max(self.key_size, 8)), True
        while True:
            attributes = struct.pack(
                "<QQQQIIQQ",
                0 if first else ctypes.addressof(token),
                ctypes.addressof(token),
                ctypes.addressof(keys),
                ctypes.addressof(values),
                limit,
                self.fd,
                0,
                0,
            )
            buffer = ctypes.create_string_buffer(attributes, 128)
            result = libc.syscall(SYS_BPF, command, buffer, 56)
            number = ctypes.get_errno() if result < 0 else 0
            if number not in (0, errno.ENOENT):
                raise OSError(number, os.strerror(number))
            count = struct.unpack_from("<I", buffer.raw, 32)[0]
            if count:
                yield (
                    ctypes.string_at(keys, count * self.key_size),
                    ctypes.string_at(values, count * value_size),
                    count,
                )
            first = False
            if number == errno.ENOENT:
                return

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every row of a hash map, read in batches (rows that change meanwhile may be met or missed)."""
        limit = min(self.max_entries, 4096)
        for keys, values, count in self._batch(_LOOKUP_BATCH, max(limit, 64), self.value_size):
            k, v = self.key_size, self.value_size
            for n in range(count):
                yield keys[n * k : n * k + k], values[n * v : n * v + v]

    def prefix(self, count: int) -> bytes:
        """The values 0 … count-1 of an array map, one after the other."""
        if not count:
            return b""
        if count < 4:
            found = (self.lookup(struct.pack("<I", n)) for n in range(count))
            return b"".join(value or b"" for value in found)
        return b"".join(
            values for _, values, _ in self._batch(_LOOKUP_BATCH, count, self.value_size)
        )[: count * self.value_size]

    def load(self, values: bytes) -> None:
        """Write the values 0 … n-1 of an array map."""
        count = len(values) // self.value_size
        if not count:
            return
        keys = struct.pack(f"<{count}I", *range(count))
        k, v = (
            ctypes.create_string_buffer(keys, len(keys)),
            ctypes.create_string_buffer(values, len(values)),
        )
        call(
            _UPDATE_BATCH,
            struct.pack(
                "<QQQQIIQQ", 0, 0, ctypes.addressof(k), ctypes.addressof(v), count, self.fd, 0, 0
            ),
            56,
        )

    def close(self) -> None:
        os.close(self.fd)


def close_gate(params: int) -> None:
    """Without reading a layout: the gate is the first member of the map's one row."""
    kind, key_size, value_size, rows, *_ = shape_of(params)
    table = Map(params, kind, key_size, value_size, rows)
    if (row := table.lookup(bytes(key_size))) is not None:
        table.update(bytes(key_size), bytes(8) + row[8:])


def object_name(fd: int) -> str:
    """What a map or a program is called in this kernel, by its id: the same for every descriptor of it. Empty for any other file."""
    kind = os.readlink(f"/proc/self/fd/{fd}")
    if kind not in ("anon_inode:bpf-map", "anon_inode:bpf-prog"):
        return ""
    info = ctypes.create_string_buffer(256)
    call(_INFO, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
    return f"{kind} {struct.unpack_from('<I', info, 4)[0]}"


def shape_of(fd: int) -> tuple[int, int, int, int, int, int, int, int]:
    """(kind, key size, value size, rows, flags, id of its BTF, type ids of key and value) of a map (struct bpf_map_info)."""
    info = ctypes.create_string_buffer(88)
    call(_INFO, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
    kind, _, key_size, value_size, rows, flags = struct.unpack_from("<IIIIII", info)
    return kind, key_size, value_size, rows, flags, *struct.unpack_from("<III", info, 64)


def types_of(btf_id: int) -> bytes:
    """BTF that is loaded, by its id."""
    fd, _ = call(_BTF_BY_ID, struct.pack("<I", btf_id))
    try:
        info = ctypes.create_string_buffer(32)
        call(_INFO, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
        (size,) = struct.unpack_from("<I", info, 8)
        blob = ctypes.create_string_buffer(size)
        ctypes.memset(info, 0, len(info))
        struct.pack_into("<QI", info, 0, ctypes.addressof(blob), size)
        call(_INFO, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
        return blob.raw
    finally:
        os.close(fd)


def load_types(blob: bytes) -> int:
    """A file descriptor of BTF."""
    text = ctypes.create_string_buffer(blob, len(blob))
    return call(_BTF_LOAD, struct.pack("<QQIII", ctypes.addressof(text), 0, len(blob), 0, 0))[0]


def create_map(
    name: str,
    kind: int,
    sizes: tuple[int, int, int],
    flags: int,
    types: tuple[int, int, int] = (0, 0, 0),
) -> int:
    """A new map's file descriptor. sizes: of key and value, and rows; types: file descriptor of BTF, type ids of key and value."""
    title = name.encode()[:15]
    return call(
        _MAP_CREATE, struct.pack("<IIIIIII16sIIII", kind, *sizes, flags, 0, 0, title, 0, *types), 72
    )[0]


class Ring:
    """The consumer's side of a BPF ring buffer (kernel/bpf/ringbuf.c): a page for our position, one for the kernel's, the data twice.

    keep: is given each event and its position before it is taken out."""

    _BUSY, _DISCARD, _HEADER = 1 << 31, 1 << 30, 8

    def __init__(
        self, fd: int, size: int, keep: Callable[[int, bytes], None] | None = None
    ) -> None:
        self.fd, self._size, self._keep = fd, size, keep
        self._consumer = mmap.mmap(
            fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        data = mmap.PAGESIZE + 2 * size
        self._producer = mmap.mmap(fd, data, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE)

    @property
    def at(self) -> int:
        """The position of the next event."""
        return int(struct.unpack_from("<Q", self._consumer)[0])

    def read(self) -> Iterator[bytes]:
        """Every event that is committed now."""
        while True:
            at = self.at
            (end,) = struct.unpack_from("<Q", self._producer)
            if at >= end:
                return
            offset = mmap.PAGESIZE + at % self._size
            (header,) = struct.unpack_from("<I", self._producer, offset)
            if header & self._BUSY:
                return
            length = header & ~(self._BUSY | self._DISCARD)
            record = self._producer[offset + self._HEADER : offset + self._HEADER + length]
            if self._keep and not header & self._DISCARD:
                self._keep(at, record)
            struct.pack_into("<Q", self._consumer, 0, at + (length + self._HEADER + 7) // 8 * 8)
            if not header & self._DISCARD:
                yield record

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()
