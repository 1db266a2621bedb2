"""The layouts that kernel and daemon share, read from probes/include/books.h itself: one place, no drift.

The header is restricted to enums and structs of fixed-width scalars, `char name[n]` and scalar arrays.
"""

from __future__ import annotations

import re
import struct
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tracer.errors import RmapdError

_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s32": "i", "s64": "q"}
_MEMBER = re.compile(r"(?:struct )?(\w+) (\w+)(?:\[(\d+)\])?")


@dataclass(frozen=True)
class Layout:
    """One struct: pack a mapping into bytes, unpack bytes into a namespace with the C member names."""

    name: str
    code: struct.Struct
    members: tuple[tuple[str, str, int], ...]

    @property
    def size(self) -> int:
        return self.code.size

    def place(self, member: str) -> int:
        """Where a member is among the values that `code` unpacks; no array comes before it."""
        return [name for name, _, _ in self.members].index(member)

    @cached_property
    def record(self) -> Callable[..., Any]:
        """Makes an immutable of the values that `code` unpacked, in a fifth of the time of named(). Only structs without arrays."""
        return namedtuple(self.name, [name for name, _, _ in self.members])

    def column(self, member: str, blob: bytes) -> Sequence[int]:
        """One member of each of the structs that follow one another in there; nothing is copied. Only structs of u64, u32, no arrays."""
        at = 1 + self.place(member)
        before, kind = self.code.format[:at], self.code.format[at]
        size = struct.calcsize(kind)
        return memoryview(blob).cast("Q" if kind == "Q" else "I")[
            struct.calcsize(before) // size :: self.size // size
        ]

    def unpack(self, blob: bytes) -> Any:
        return self.named(self.code.unpack_from(blob))

    def named(self, unpacked: Iterable[Any]) -> Any:
        """What `code` unpacked, by the names of the members."""
        values, out = iter(unpacked), SimpleNamespace()
        for name, kind, count in self.members:
            if kind == "char":
                setattr(out, name, next(values).split(b"\0")[0].decode(errors="replace"))
            else:
                setattr(out, name, [next(values) for _ in range(count)] if count else next(values))
        return out

    def pack(self, **given: Any) -> bytes:
        """Missing members are zero, arrays of numbers are given as lists; only structs without arrays of chars are packed."""
        values: list[int | bytes] = []
        for name, kind, count in self.members:
            values += (
                [b""]
                if kind == "char"
                else [given.get(name, 0)]
                if not count
                else given.get(name, [0] * count)
            )
        return self.code.pack(*values)


@dataclass(frozen=True)
class Layouts:
    """All structs and enumerators of the header."""

    structs: dict[str, Layout]
    constants: dict[str, int]
    enums: dict[str, tuple[str, ...]]

    @classmethod
    def read(cls, header: Path) -> Layouts:
        try:
            return parse(header.read_text(encoding="utf-8"))
        except OSError as error:
            raise RmapdError(
                f"cannot read {header}", why=str(error), hint="reinstall rmapd"
            ) from error


def parse(text: str) -> Layouts:
    """Parse the header's text."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    constants: dict[str, int] = {}
    enums: dict[str, tuple[str, ...]] = {}
    structs: dict[str, Layout] = {}
    for kind, name, body in re.findall(r"\b(enum|struct) (\w+) \{(.*?)\};", text, flags=re.S):
        if kind == "enum":
            enums[name] = _enum(body, constants)
        else:
            structs[name] = _struct(name, body, structs)
    return Layouts(structs, constants, enums)


def _enum(body: str, constants: dict[str, int]) -> tuple[str, ...]:
    names, value = [], 0
    for item in filter(None, (part.strip() for part in body.split(","))):
        name, _, given = (part.strip() for part in item.partition("="))
        value = int(given, 0) if given else value
        constants[name] = value
        names.append(name)
        value += 1
    return tuple(names)


def _struct(name: str, body: str, known: dict[str, Layout]) -> Layout:
    codes, members = "<", []
    for line in filter(None, (part.strip() for part in body.split(";"))):
        matched = _MEMBER.fullmatch(line)
        if not matched:
            raise RmapdError(f"struct {name} in books.h", why=f"cannot read the member {line!r}")
        kind, member, count = matched[1], matched[2], int(matched[3] or 0)
        if kind == "char":
            codes += f"{count}s"
        elif kind in known:
            codes += known[kind].code.format[1:] * (count or 1)
            count = (count or 1) * len(known[kind].members)
        else:
            codes += _CODES[kind] * (count or 1)
        members.append((member, kind, count))
    return Layout(name, struct.Struct(codes), tuple(members))
