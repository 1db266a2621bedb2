"""A kernel's BTF: types, members with their offsets, prototypes of functions and tracepoints.

The format is that of the kernel's Documentation/bpf/btf.rst, kind numbers those of
include/uapi/linux/btf.h. Reading indexes the headers of records, in one pass over the type section;
a record's body is decoded when it is asked for.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import add
from pathlib import Path

from tracer.errors import RmapdError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = 9, 10, 11, 12, 13, 14, 15
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 16, 17, 18, 19

_MAGIC = 0xEB9F
_TRAILER = {
    INT: (4, 0),
    ARRAY: (12, 0),
    STRUCT: (0, 12),
    UNION: (0, 12),
    ENUM: (0, 8),
    FUNC_PROTO: (0, 8),
    VAR: (4, 0),
    DATASEC: (0, 12),
    DECL_TAG: (4, 0),
    ENUM64: (0, 12),
}
"""Kind -> bytes that follow the header of a record: (once, for each of its vlen elements)."""
_MODIFIERS = frozenset({TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG})


@dataclass(frozen=True)
class Field:
    """One member of a struct.

    bit_offset: from the start of the outermost struct. bit_size: 0 unless it is a bitfield.
    """

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


class Btf:
    """A parsed BTF blob. Types are named by their ids; 0 is void."""

    def __init__(self, blob: bytes, origin: str = "BTF") -> None:
        """Index a blob. origin: where it is from, for messages. Raises RmapdError."""
        if len(blob) < 24 or struct.unpack_from("<H", blob)[0] != _MAGIC:
            raise RmapdError(
                f"{origin} is not BTF",
                why="the magic number is missing",
                hint="a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            )
        header_len, type_off, type_len, str_off, str_len = struct.unpack_from("<IIIII", blob, 4)
        self._blob = blob
        self._types = header_len + type_off
        self._strings = header_len + str_off
        self._strings_end = self._strings + str_len
        self._at = [0]
        self._by_kind_name: dict[tuple[int, int], int] = {}
        try:
            self._index(self._types, self._types + type_len)
        except (struct.error, KeyError) as error:
            raise RmapdError(
                f"{origin} cannot be read",
                why=f"unknown or truncated record ({error})",
                hint="report it, with this kernel's release",
            ) from error

    @classmethod
    def read(cls, path: Path) -> Btf:
        """Read /sys/kernel/btf/vmlinux, or another file of that form. Raises RmapdError."""
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise RmapdError(
                f"cannot read kernel types from {path}",
                why=error.strerror or str(error),
                hint="a kernel with CONFIG_DEBUG_INFO_BTF=y, and sysfs mounted on /sys",
            ) from error

    def _index(self, at: int, end: int) -> None:
        unpack, blob = struct.Struct("<III").unpack_from, self._blob
        offsets, names = self._at, self._by_kind_name
        while at < end:
            name, info, _ = unpack(blob, at)
            kind, vlen = (info >> 24) & 31, info & 0xFFFF
            if name:
                names.setdefault((kind, name), len(offsets))
            offsets.append(at)
            fixed, each = _TRAILER.get(kind, (0, 0))
            if kind == 0 or kind > ENUM64:
                raise KeyError(f"kind {kind}")
            at += 12 + fixed + each * vlen

    @property
    def digest(self) -> str:
        """A hash of the whole blob."""
        return hashlib.sha256(self._blob).hexdigest()

    def __len__(self) -> int:
        return len(self._at)

    def _string(self, offset: int) -> str:
        start = self._strings + offset
        return self._blob[start : self._blob.index(b"\0", start)].decode()

    def _find_string(self, name: str) -> list[int]:
        """Return the offsets of this very string; the section is usually deduplicated."""
        once, doubled = self._offsets
        text = name.encode()
        return doubled.get(text) or ([once[text]] if text in once else [])

    @cached_property
    def _offsets(self) -> tuple[dict[bytes, int], dict[bytes, list[int]]]:
        """(string -> its last offset, string that is there more than once -> all its offsets)."""
        strings = self._blob[self._strings : self._strings_end].split(b"\0")
        starts = list(map(add, accumulate(map(len, strings), initial=0), range(len(strings))))
        once, doubled = dict(zip(strings, starts, strict=True)), dict[bytes, list[int]]()
        # the empty string is both the first and, after the last zero, the last
        if len(once) < len(strings) - 1:
            for string, start in zip(strings, starts, strict=True):
                doubled.setdefault(string, []).append(start)
        return once, doubled

    def _header(self, type_id: int) -> tuple[str, int, int, int, int, int]:
        """Return (name, kind, vlen, kind_flag, size or type, offset of what follows)."""
        if not 0 < type_id < len(self._at):
            return "void", 0, 0, 0, 0, 0
        at = self._at[type_id]
        name, info, size = struct.unpack_from("<III", self._blob, at)
        return self._string(name), (info >> 24) & 31, info & 0xFFFF, info >> 31, size, at + 12

    def find(self, name: str, *kinds: int) -> int | None:
        """Return the id of the first type of one of these kinds with this name; None if absent."""
        for offset in self._find_string(name):
            for kind in kinds:
                if (kind, offset) in self._by_kind_name:
                    return self._by_kind_name[kind, offset]
        return None

    def names(self, kind: int) -> Iterator[str]:
        """Yield the names of this kind."""
        return (self._string(offset) for of_kind, offset in self._by_kind_name if of_kind == kind)

    def name(self, type_id: int) -> str:
        """Return a type's name; empty where it is anonymous."""
        return self._header(type_id)[0]

    def kind(self, type_id: int) -> int:
        """Return a type's kind, one of the constants above; 0 for void."""
        return self._header(type_id)[1]

    def strip(self, type_id: int) -> int:
        """Follow typedef, const, volatile, restrict and type tags to the type itself."""
        while (header := self._header(type_id))[1] in _MODIFIERS:
            type_id = header[4]
        return type_id

    def target(self, type_id: int) -> int:
        """Return the type that a pointer, typedef, modifier or function refers to, unstripped."""
        return self._header(type_id)[4]

    def array(self, type_id: int) -> tuple[int, int]:
        """Return (type of the elements, number of elements) of an array."""
        element, _, count = struct.unpack_from("<III", self._blob, self._header(type_id)[5])
        return element, count

    def int_signed(self, type_id: int) -> bool:
        """Return whether an integer type is signed."""
        return bool((struct.unpack_from("<I", self._blob, self._header(type_id)[5])[0] >> 24) & 1)

    def size(self, type_id: int) -> int:
        """Return sizeof in bytes; 0 for void, functions and forward declarations."""
        type_id = self.strip(type_id)
        _, kind, _, _, size, _ = self._header(type_id)
        if kind == PTR:
            return 8
        if kind == ARRAY:
            element, count = self.array(type_id)
            return self.size(element) * count
        return size if kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT) else 0

    def members(self, type_id: int) -> list[Field]:
        """Return the direct members of a struct or union; an anonymous one has an empty name."""
        _, kind, vlen, kind_flag, _, at = self._header(type_id)
        fields = []
        for index in range(vlen if kind in (STRUCT, UNION) else 0):
            name, member, offset = struct.unpack_from("<III", self._blob, at + 12 * index)
            bits = offset >> 24 if kind_flag else 0
            fields.append(
                Field(self._string(name), member, offset & 0xFFFFFF if kind_flag else offset, bits)
            )
        return fields

    def flat_members(self, type_id: int, base: int = 0) -> Iterator[Field]:
        """Yield members as C names them, with those of anonymous structs and unions.

        base: offset of the struct itself, in bits.
        """
        for field in self.members(type_id):
            inner = self.strip(field.type_id)
            if not field.name and self.kind(inner) in (STRUCT, UNION):
                yield from self.flat_members(inner, base + field.bit_offset)
            elif field.name:
                yield Field(field.name, field.type_id, base + field.bit_offset, field.bit_size)

    def resolve(self, path: str) -> Field | None:
        """Find a member by its path `struct.member.member…`; None if absent.

        Its offset counts from the first struct, which may be a typedef.
        """
        first, *rest = path.split(".")
        type_id = self.find(first, STRUCT, UNION)
        if type_id is None:
            type_id = self.find(first, TYPEDEF)
        if type_id is None or not rest:
            return None
        field: Field | None = None
        base = 0
        for part in rest:
            owner = self.strip(type_id)
            field = next((f for f in self.flat_members(owner, base) if f.name == part), None)
            if field is None:
                return None
            type_id, base = field.type_id, field.bit_offset
        return field

    def enumerators(self, enum: str) -> dict[str, int]:
        """Return name -> value of an enum, unsigned; empty where the kernel has no such enum."""
        type_id = self.find(enum, ENUM, ENUM64)
        if type_id is None:
            return {}
        _, kind, vlen, _, _, at = self._header(type_id)
        out = {}
        for index in range(vlen):
            if kind == ENUM:
                label, value = struct.unpack_from("<II", self._blob, at + 8 * index)
            else:
                label, low, high = struct.unpack_from("<III", self._blob, at + 12 * index)
                value = low | high << 32
            out[self._string(label)] = int(value)
        return out

    def c_type(self, type_id: int) -> str:
        """Spell a type as C does (`struct mm_struct *`, `bool`, `unsigned long`)."""
        name, kind, _, _, target, _ = self._header(type_id)
        if kind in (CONST, VOLATILE, RESTRICT, TYPE_TAG):
            return self.c_type(target)
        if kind == PTR:
            inner = self.c_type(target)
            return f"{inner}*" if inner.endswith("*") else f"{inner} *"
        if kind in (STRUCT, UNION, ENUM, ENUM64, FWD):
            word = {STRUCT: "struct", UNION: "union", FWD: "struct"}.get(kind, "enum")
            return f"{word} {name}"
        if kind == FUNC_PROTO:
            return "function"
        return (
            {"long unsigned int": "unsigned long", "_Bool": "bool"}.get(name, name)
            if kind
            else "void"
        )

    def prototype(self, proto_id: int) -> list[str]:
        """Return the types of a FUNC_PROTO's parameters, as c_type() spells them."""
        _, _, vlen, _, _, at = self._header(proto_id)
        return [
            self.c_type(struct.unpack_from("<II", self._blob, at + 8 * i)[1]) for i in range(vlen)
        ]

    def function(self, name: str) -> list[str] | None:
        """Return the types of a function's parameters; None if BTF does not have it."""
        type_id = self.find(name, FUNC)
        return None if type_id is None else self.prototype(self.target(type_id))

    def signature(self, name: str) -> tuple[list[tuple[str, int]], int] | None:
        """Return ([(parameter, type id)], type id of the returned value, 0 for void) of a function.

        None if BTF does not have it.
        """
        type_id = self.find(name, FUNC)
        if type_id is None:
            return None
        _, _, vlen, _, returned, at = self._header(self.target(type_id))
        pairs = (struct.unpack_from("<II", self._blob, at + 8 * i) for i in range(vlen))
        return [(self._string(parameter), kind) for parameter, kind in pairs], returned

    def pointed_to(self, type_id: int) -> str:
        """Return the name of the struct that a pointer points to; empty for anything else."""
        pointer = self.strip(type_id)
        inner = self.strip(self.target(pointer)) if self.kind(pointer) == PTR else 0
        return self.name(inner) if self.kind(inner) in (STRUCT, UNION) else ""

    def raw_tracepoint(self, name: str) -> list[str] | None:
        """Return the types of a raw tracepoint's arguments; None if BTF does not have it.

        They are those of the typedef `btf_trace_NAME`, without the leading `void *`.
        """
        type_id = self.find(f"btf_trace_{name}", TYPEDEF)
        if type_id is None:
            return None
        return self.prototype(self.target(self.strip(type_id)))[1:]
