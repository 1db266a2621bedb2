"""BPF maps by file descriptor: rows read and written, maps created, their shapes and types.

Nothing here knows the layout of a value (that is tables/), or BCC. Command numbers and attribute
layouts are those of include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from tracer.bpf.syscall import SYS_BPF, Command, call, last_error, libc, object_info

_BATCH_ATTRIBUTE_BYTES = 56  # of union bpf_attr that BPF_MAP_*_BATCH uses
_BATCH_BYTES = 1 << 18  # of per-CPU values that one call reads
_BATCH_ROWS = 4096
_POSSIBLE = Path("/sys/devices/system/cpu/possible")


def possible_cpus() -> int:
    """Return how many values a row of a per-CPU map has: one for each possible CPU.

    Their numbers may have holes: bpf_percpu_array_copy() goes over the CPUs and leaves none.
    """
    text = _POSSIBLE.read_text(encoding="utf-8")
    ranges = (part.partition("-") for part in text.strip().split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


class Table(Protocol):
    """A BPF map as tables/ reads and writes it; the unit tests have one without a kernel."""

    key_size: int
    value_size: int
    max_entries: int

    def lookup(self, key: bytes) -> bytes | None:
        """Return the row of the key; None where there is none."""
        ...

    def update(self, key: bytes, value: bytes) -> None:
        """Write a row, whether it is there or not."""
        ...

    def delete(self, key: bytes) -> bool:
        """Delete a row; return whether it was there."""
        ...

    def take(self, key: bytes) -> bytes | None:
        """Return a row and delete it in one step; None where there is none."""
        ...

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each row of a hash map."""
        ...

    def rows(self, count: int) -> list[bytes]:
        """Return the first rows of a per-CPU array."""
        ...

    def prefix(self, count: int) -> bytes:
        """Return the first values of an array, joined."""
        ...

    def load(self, values: bytes) -> None:
        """Write the first values of an array."""
        ...


class Map:
    """A map behind a file descriptor. Keys and values are bytes; the methods raise OSError."""

    def __init__(
        self, fd: int, kind: int, key_size: int, value_size: int, max_entries: int, cpus: int = 1
    ) -> None:
        """Take over a descriptor.

        kind: enum bpf_map_type. Sizes in bytes. cpus: possible_cpus() for a per-CPU map, the values
        of which the kernel pads to eight bytes each.
        """
        self.fd, self.kind = fd, kind
        self.key_size, self.value_size, self.max_entries = key_size, value_size, max_entries
        self._cpus = cpus
        self._per_cpu_value = (value_size + 7) // 8 * 8
        self._key = ctypes.create_string_buffer(max(key_size, 8))
        self._value = ctypes.create_string_buffer(max(value_size, self._per_cpu_value * cpus, 8))

    def _element(self, key: bytes) -> bytes:
        """Return the attributes of the BPF_MAP_*_ELEM commands; the key is in its buffer then."""
        self._key.raw = key.ljust(len(self._key), b"\0")
        key_at, value_at = ctypes.addressof(self._key), ctypes.addressof(self._value)
        return struct.pack("<IIQQQ", self.fd, 0, key_at, value_at, 0)

    def _read(self, command: Command, key: bytes) -> bytes | None:
        try:
            call(command, self._element(key))
        except FileNotFoundError:
            return None
        return self._value.raw[: self.value_size]

    def lookup(self, key: bytes) -> bytes | None:
        """Return the row of the key; None where there is none."""
        return self._read(Command.MAP_LOOKUP_ELEM, key)

    def take(self, key: bytes) -> bytes | None:
        """Return a row and delete it in one step, so that no change a program makes is lost.

        The kernel has it for hash maps since Linux 5.14 (3e87f192b405 "bpf: Add
        lookup_and_delete_elem support to hashtab").
        """
        return self._read(Command.MAP_LOOKUP_AND_DELETE_ELEM, key)

    def update(self, key: bytes, value: bytes) -> None:
        """Write a row, whether it is there or not."""
        self._value.raw = value.ljust(len(self._value), b"\0")
        call(Command.MAP_UPDATE_ELEM, self._element(key))

    def delete(self, key: bytes) -> bool:
        """Delete a row; return whether it was there."""
        try:
            call(
                Command.MAP_DELETE_ELEM, self._element(key)[:16]
            )  # the kernel refuses a value here
        except FileNotFoundError:
            return False
        return True

    def rows(self, count: int) -> list[bytes]:
        """Return rows 0 … count-1 of a per-CPU array, read in batches.

        Each holds the values of all possible CPUs, each padded to eight bytes.
        """
        size, found = self._per_cpu_value * self._cpus, list[bytes]()
        limit = min(count, max(1, _BATCH_BYTES // size))
        for _, values, read in self._batches(limit, size):
            found += [values[n * size : (n + 1) * size] for n in range(read)]
            if len(found) >= count:
                break
        return found[:count]

    def _batches(self, limit: int, value_size: int) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield (keys, values, number of rows) until the map ends; limit: rows of a batch."""
        keys = ctypes.create_string_buffer(self.key_size * limit)
        values = ctypes.create_string_buffer(value_size * limit)
        position, first = ctypes.create_string_buffer(max(self.key_size, 8)), True
        while True:
            attributes = struct.pack(
                "<QQQQIIQQ",
                0 if first else ctypes.addressof(position),
                ctypes.addressof(position),
                ctypes.addressof(keys),
                ctypes.addressof(values),
                limit,
                self.fd,
                0,
                0,
            )
            buffer = ctypes.create_string_buffer(attributes, 128)
            result = libc.syscall(SYS_BPF, Command.MAP_LOOKUP_BATCH, buffer, _BATCH_ATTRIBUTE_BYTES)
            error = last_error() if result < 0 else None
            if error and error.errno != errno.ENOENT:
                raise error
            count = struct.unpack_from("<I", buffer.raw, 32)[0]
            if count:
                yield (
                    ctypes.string_at(keys, count * self.key_size),
                    ctypes.string_at(values, count * value_size),
                    count,
                )
            first = False
            if error:  # ENOENT: this was the last batch
                return

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each (key, value) of a hash map, read in batches.

        A row that a program inserts or deletes meanwhile may be among them or not.
        """
        limit = max(min(self.max_entries, _BATCH_ROWS), 64)
        k, v = self.key_size, self.value_size
        for keys, values, count in self._batches(limit, v):
            for n in range(count):
                yield keys[n * k : n * k + k], values[n * v : n * v + v]

    def prefix(self, count: int) -> bytes:
        """Return the values 0 … count-1 of an array map, one after the other."""
        if not count:
            return b""
        if count < 4:
            found = (self.lookup(struct.pack("<I", n)) for n in range(count))
            return b"".join(value or b"" for value in found)
        every = b"".join(values for _, values, _ in self._batches(count, self.value_size))
        return every[: count * self.value_size]

    def load(self, values: bytes) -> None:
        """Write the values 0 … n-1 of an array map; values: n of them, joined."""
        count = len(values) // self.value_size
        if not count:
            return
        indexes = struct.pack(f"<{count}I", *range(count))
        k = ctypes.create_string_buffer(indexes, len(indexes))
        v = ctypes.create_string_buffer(values, len(values))
        addresses = ctypes.addressof(k), ctypes.addressof(v)
        attributes = struct.pack("<QQQQIIQQ", 0, 0, *addresses, count, self.fd, 0, 0)
        call(Command.MAP_UPDATE_BATCH, attributes, _BATCH_ATTRIBUTE_BYTES)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class MapInfo(NamedTuple):
    """A map as the kernel describes it (struct bpf_map_info). btf_id: 0 where it has no types."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    btf_id: int
    key_type: int
    value_type: int


def map_info(fd: int) -> MapInfo:
    """Read the description of the map behind a descriptor. Raises OSError."""
    info = object_info(fd, 88)
    kind, _, key_size, value_size, rows, flags = struct.unpack_from("<IIIIII", info)
    return MapInfo(kind, key_size, value_size, rows, flags, *struct.unpack_from("<III", info, 64))


def close_gate(params: int) -> None:
    """Make the probes record nothing, without a layout: the gate is the first u64 of `params`.

    params: descriptor of that map, which has one row.
    """
    info = map_info(params)
    table = Map(params, info.kind, info.key_size, info.value_size, info.max_entries)
    if (row := table.lookup(bytes(info.key_size))) is not None:
        table.update(bytes(info.key_size), bytes(8) + row[8:])


def btf_of(btf_id: int) -> bytes:
    """Return a BTF object that the kernel has, by its id. Raises OSError."""
    fd, _ = call(Command.BTF_GET_FD_BY_ID, struct.pack("<I", btf_id))
    try:
        (size,) = struct.unpack_from("<I", object_info(fd, 32), 8)
        blob = ctypes.create_string_buffer(size)
        object_info(fd, 32, struct.pack("<QI", ctypes.addressof(blob), size))
        return blob.raw
    finally:
        os.close(fd)


def load_btf(blob: bytes) -> int:
    """Give BTF to the kernel; return its file descriptor. Raises OSError."""
    text = ctypes.create_string_buffer(blob, len(blob))
    return call(
        Command.BTF_LOAD, struct.pack("<QQIII", ctypes.addressof(text), 0, len(blob), 0, 0)
    )[0]


def create_map(
    name: str,
    kind: int,
    sizes: tuple[int, int, int],
    flags: int,
    types: tuple[int, int, int] = (0, 0, 0),
) -> int:
    """Create a map; return its file descriptor. Raises OSError.

    name: the kernel keeps 15 characters. sizes: of key and value in bytes, and the number of rows.
    types: file descriptor of BTF, and its type ids of key and value; task storage needs them.
    """
    title = name.encode()[:15]
    attributes = struct.pack("<IIIIIII16sIIII", kind, *sizes, flags, 0, 0, title, 0, *types)
    return call(Command.MAP_CREATE, attributes, 72)[0]
