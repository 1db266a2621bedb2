"""The running kernel's BTF: types by name, members with exact offsets, function and tracepoint prototypes.

The format is documented in the kernel's Documentation/bpf/btf.rst; kind numbers are those of include/uapi/linux/btf.h.
Only record headers are indexed on reading (one pass over the type section); bodies are decoded on demand.
"""

from __future__ import annotations

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
} | {
    VAR: (4, 0),
    DATASEC: (0, 12),
    DECL_TAG: (4, 0),
    ENUM64: (0, 12),
}
_MODIFIERS = frozenset({TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG})


@dataclass(frozen=True)
class Field:
    """One member as it lies in its outermost struct: bit_offset from the start, bit_size 0 unless a bitfield."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


class Btf:
    """A parsed BTF blob. Type id 0 is void."""

    def __init__(self, blob: bytes, origin: str = "BTF") -> None:
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
                f"{origin} cannot be read", why=f"unknown or truncated record ({error})"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Btf:
        """Read /sys/kernel/btf/vmlinux or a file of the same form."""
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

    def __len__(self) -> int:
        return len(self._at)

    def _string(self, offset: int) -> str:
        start = self._strings + offset
        return self._blob[start : self._blob.index(b"\0", start)].decode()

    def _find_string(self, name: str) -> list[int]:
        """Every offset at which the exact string stands (the section is usually deduplicated)."""
        once, doubled = self._offsets
        text = name.encode()
        return doubled.get(text) or ([once[text]] if text in once else [])

    @cached_property
    def _offsets(self) -> tuple[dict[bytes, int], dict[bytes, list[int]]]:
        """Where each string of the section is, and all places of those that are there more than once."""
        strings = self._blob[self._strings : self._strings_end].split(b"\0")
        starts = list(map(add, accumulate(map(len, strings), initial=0), range(len(strings))))
        once, doubled = dict(zip(strings, starts, strict=True)), dict[bytes, list[int]]()
        if (
            len(once) < len(strings) - 1
        ):  # the empty one is both the first and, after the last zero, the last
            for string, start in zip(strings, starts, strict=True):
                doubled.setdefault(string, []).append(start)
        return once, doubled

    def _header(self, type_id: int) -> tuple[str, int, int, int, int, int]:
        """(name, kind, vlen, kind_flag, size_or_type, offset of the trailer)."""
        if not 0 < type_id < len(self._at):
            return "void", 0, 0, 0, 0, 0
        at = self._at[type_id]
        name, info, size = struct.unpack_from("<III", self._blob, at)
        return self._string(name), (info >> 24) & 31, info & 0xFFFF, info >> 31, size, at + 12

    def find(self, name: str, *kinds: int) -> int | None:
        """The id of the first type of one of these kinds with this name."""
        for offset in self._find_string(name):
            for kind in kinds:
                if (kind, offset) in self._by_kind_name:
                    return self._by_kind_name[kind, offset]
        return None

    def names(self, kind: int) -> Iterator[str]:
        """All names of this kind (used for tracepoints and for suggestions)."""
        return (self._string(offset) for of_kind, offset in self._by_kind_name if of_kind == kind)

    def name(self, type_id: int) -> str:
        return self._header(type_id)[0]

    def kind(self, type_id: int) -> int:
        return self._header(type_id)[1]

    def strip(self, type_id: int) -> int:
        """Follow typedef, const, volatile, restrict and type tags to the type itself."""
        while (header := self._header(type_id))[1] in _MODIFIERS:
            type_id = header[4]
        return type_id

    def target(self, type_id: int) -> int:
        """What a pointer points to, unstripped."""
        return self._header(type_id)[4]

    def array(self, type_id: int) -> tuple[int, int]:
        """(element type id, number of elements)."""
        element, _, count = struct.unpack_from("<III", self._blob, self._header(type_id)[5])
        return element, count

    def int_signed(self, type_id: int) -> bool:
        return bool((struct.unpack_from("<I", self._blob, self._header(type_id)[5])[0] >> 24) & 1)

    def size(self, type_id: int) -> int:
        """sizeof in bytes; 0 for void, functions and forward declarations."""
        type_id = self.strip(type_id)
        _, kind, _, _, size, _ = self._header(type_id)
        if kind == PTR:
            return 8
        if kind == ARRAY:
            element, count = self.array(type_id)
            return self.size(element) * count
        return size if kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT) else 0

    def members(self, type_id: int) -> list[Field]:
        """Direct members of a struct or union, anonymous ones with an empty name."""
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
        """Members by the names C sees: those of anonymous structs and unions are lifted, recursively."""
        for field in self.members(type_id):
            inner = self.strip(field.type_id)
            if not field.name and self.kind(inner) in (STRUCT, UNION):
                yield from self.flat_members(inner, base + field.bit_offset)
            elif field.name:
                yield Field(field.name, field.type_id, base + field.bit_offset, field.bit_size)

    def resolve(self, path: str) -> Field | None:
        """`struct.member.member…` to the final member, its offset counted from the first struct; None if absent."""
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
        """name -> value of every enumerator, unsigned; empty where the kernel has no such enum."""
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
        """The type as C spells it, names only (`struct mm_struct *`, `bool`, `unsigned long`)."""
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
        """The parameter types of a FUNC_PROTO as C spells them."""
        _, _, vlen, _, _, at = self._header(proto_id)
        return [
            self.c_type(struct.unpack_from("<II", self._blob, at + 8 * i)[1]) for i in range(vlen)
        ]

    def function(self, name: str) -> list[str] | None:
        """The parameter types of a kernel function, or None if BTF does not know it."""
        type_id = self.find(name, FUNC)
        return None if type_id is None else self.prototype(self.target(type_id))

    def signature(self, name: str) -> tuple[list[tuple[str, int]], int] | None:
        """([(parameter name, type id)], type id of what is returned, 0 for void) of a kernel function; None if BTF does not know it."""
        type_id = self.find(name, FUNC)
        if type_id is None:
            return None
        _, _, vlen, _, returned, at = self._header(self.target(type_id))
        pairs = (struct.unpack_from("<II", self._blob, at + 8 * i) for i in range(vlen))
        return [(self._string(parameter), kind) for parameter, kind in pairs], returned

    def pointed_to(self, type_id: int) -> str:
        """The name of the struct that this pointer type points to; empty for anything else."""
        bare = self.strip(type_id)
        inner = self.strip(self.target(bare)) if self.kind(bare) == PTR else 0
        return self.name(inner) if self.kind(inner) in (STRUCT, UNION) else ""

    def raw_tracepoint(self, name: str) -> list[str] | None:
        """The arguments of a raw tracepoint (typedef `btf_trace_NAME`, its leading `void *` removed), or None."""
        type_id = self.find(f"btf_trace_{name}", TYPEDEF)
        if type_id is None:
            return None
        return self.prototype(self.target(self.strip(type_id)))[1:]
