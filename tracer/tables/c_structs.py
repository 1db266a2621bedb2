"""C structs and enums that the BPF programs and the daemon share.

They are parsed from the header that the programs include, so there is one definition of each. The
header has only enums, and structs of fixed-width scalars, of `char name[n]` and of scalar arrays.
"""

from __future__ import annotations

import os
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

PAGE_SHIFT = os.sysconf("SC_PAGESIZE").bit_length() - 1
"""Of this machine's pages: the programs that it runs have their bitmaps as long as that needs."""
_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s32": "i", "s64": "q"}
_MEMBER = re.compile(r"(?:struct |union )?(\w+)\s+(\w+)(?:\[(\d+)\])?")
_UNION = "union"
"""The kind of a member that is unpacked as bytes: its reader knows which struct they are."""


@dataclass(frozen=True)
class Layout:
    """One struct.

    members: (name, C type, count) of each member; count 0: no array.
    """

    name: str
    code: struct.Struct
    members: tuple[tuple[str, str, int], ...]

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.code.size

    def place(self, member: str) -> int:
        """Return the index of a member among the values that `code` unpacks.

        No array may come before the member.
        """
        return [name for name, _, _ in self.members].index(member)

    @cached_property
    def record(self) -> Callable[..., Any]:
        """A named tuple of the values that `code` unpacks: five times as fast as unpack().

        Only for structs without arrays.
        """
        return namedtuple(self.name, [name for name, _, _ in self.members])

    def column(self, member: str, blob: bytes) -> Sequence[int]:
        """Return one member of each struct in a row of structs, without a copy.

        Only for structs of u64 and u32 without arrays.
        """
        at = 1 + self.place(member)
        before, kind = self.code.format[:at], self.code.format[at]
        size = struct.calcsize(kind)
        return memoryview(blob).cast("Q" if kind == "Q" else "I")[
            struct.calcsize(before) // size :: self.size // size
        ]

    def unpack(self, blob: bytes) -> Any:
        """Return the struct at the start of the bytes, as a namespace with the C names."""
        return self._named(self.code.unpack_from(blob))

    def _named(self, unpacked: Iterable[Any]) -> Any:
        values, out = iter(unpacked), SimpleNamespace()
        for name, kind, count in self.members:
            if kind == "char":
                setattr(out, name, next(values).split(b"\0")[0].decode(errors="replace"))
            else:
                setattr(out, name, [next(values) for _ in range(count)] if count else next(values))
        return out

    def pack(self, **given: Any) -> bytes:
        """Return the bytes of a struct with these members; missing members are zero.

        An array of numbers is given as a list. An array of chars is always zero.
        """
        values: list[int | bytes] = []
        for name, kind, count in self.members:
            if kind == _UNION:
                values.append(given.get(name, b""))
            elif kind == "char":
                values.append(b"")
            elif count:
                values += given.get(name, [0] * count)
            else:
                values.append(given.get(name, 0))
        return self.code.pack(*values)


@dataclass(frozen=True)
class Layouts:
    """All structs and enums of the header.

    constants: the value of each enumerator. enums: the names of the enumerators of each enum.
    page_shift: of the pages for which it was read.
    """

    structs: dict[str, Layout]
    constants: dict[str, int]
    enums: dict[str, tuple[str, ...]]
    page_shift: int

    @classmethod
    def read(cls, header: Path, page_shift: int = PAGE_SHIFT) -> Layouts:
        """Parse the header. Raises RmapdError if it cannot be read. page_shift: of the pages."""
        try:
            return parse(header.read_text(encoding="utf-8"), page_shift)
        except OSError as error:
            raise RmapdError(
                f"cannot read {header}", why=str(error), hint="reinstall rmapd"
            ) from error


def names_of(layouts: Layouts, enum: str, prefix: str) -> tuple[str, ...]:
    """Return the enumerators that begin with a prefix, without it, in the order of the header."""
    names = (name for name in layouts.enums[enum] if name.startswith(prefix))
    return tuple(name.removeprefix(prefix) for name in names)


def parse(text: str, page_shift: int = PAGE_SHIFT) -> Layouts:
    """Parse the text of the header. Raises RmapdError for a member that it does not understand."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    constants: dict[str, int] = {}
    enums: dict[str, tuple[str, ...]] = {}
    structs: dict[str, Layout] = {}
    unions: dict[str, int] = {}
    lengths = {"SETTLED_WORDS": (1 << page_shift - 3) // 64}
    text = re.sub(r"\[(\w+)\]", lambda found: f"[{lengths.get(found[1], found[1])}]", text)
    for kind, name, body in re.findall(r"\b(enum|struct|union) (\w+) \{(.*?)\};", text, flags=re.S):
        if kind == "enum":
            enums[name] = _enum(body, constants)
        elif kind == "union":
            unions[name] = max(part.code.size for part in _members_of(name, body, structs))
        else:
            structs[name] = _struct(name, body, structs, unions)
    return Layouts(structs, constants, enums, page_shift)


def _enum(body: str, constants: dict[str, int]) -> tuple[str, ...]:
    """Add the enumerators to `constants` and return their names."""
    names, value = [], 0
    for item in filter(None, (part.strip() for part in body.split(","))):
        name, _, given = (part.strip() for part in item.partition("="))
        value = int(given, 0) if given else value
        constants[name] = value
        names.append(name)
        value += 1
    return tuple(names)


def _members_of(name: str, body: str, known: dict[str, Layout]) -> list[Layout]:
    """Return the structs that a union is of. RmapdError: a member is not a struct."""
    kinds = [kind for _, kind, _ in _struct(name, body, known, {}).members]
    if plain := set(kinds) - set(known):
        raise RmapdError(f"union {name} in shared.h", why=f"{plain.pop()} is not a struct")
    return [known[kind] for kind in kinds]


def _struct(name: str, body: str, known: dict[str, Layout], unions: dict[str, int]) -> Layout:
    """Make the layout of a struct; its members may be structs or unions that are known."""
    codes, members = "<", []
    for line in filter(None, (part.strip() for part in body.split(";"))):
        matched = _MEMBER.fullmatch(line)
        if not matched:
            raise RmapdError(
                f"struct {name} of the shared header", why=f"cannot read the member {line!r}"
            )
        kind, member, count = matched[1], matched[2], int(matched[3] or 0)
        if kind == "char":
            codes += f"{count}s"
        elif kind in unions:
            codes += f"{unions[kind]}s"
            kind = _UNION
        elif kind in known:
            codes += known[kind].code.format[1:] * (count or 1)
            count = (count or 1) * len(known[kind].members)
        else:
            codes += _CODES[kind] * (count or 1)
        members.append((member, kind, count))
    return Layout(name, struct.Struct(codes), tuple(members))
