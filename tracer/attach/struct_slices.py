"""Slices: C structs with only the members that the probes name, at their offsets in this kernel.

The `[types]` table of a probe object maps `slice.member` to candidates `struct.path.to.member`, in
order of preference, so a member that was renamed or moved is one more candidate. Each member gets
an anonymous struct of its own inside a union: overlapping members (kernel unions) and gaps need no
special case. A bitfield becomes a function `slice_member(address)`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tracer.kernel import btf as b
from tracer.kernel.btf import Btf, Field

_INTS = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}


@dataclass(frozen=True)
class Missing:
    """A member or enumerator that this kernel lacks. nearest: similar names, for the message."""

    member: str
    candidates: tuple[str, ...]
    nearest: tuple[str, ...]

    def __str__(self) -> str:
        near = f"; nearest: {', '.join(self.nearest)}" if self.nearest else ""
        tried = f"candidates: {', '.join(self.candidates)}{near}"
        return f"{self.member} is not in this kernel's BTF ({tried})"


@dataclass(frozen=True)
class Slices:
    """The result of make(). header: C text. missing: by `slice.member` or enumerator."""

    header: str
    missing: dict[str, Missing]


def make(
    types: Btf, wanted: Mapping[str, Sequence[str]], enums: Mapping[str, Sequence[str]]
) -> Slices:
    """Resolve the wanted members and enumerators.

    wanted: `slice.member` -> candidates. A key with a leading `?` is optional. A member that is
    found defines HAVE_slice_member. enums: macro -> candidates `enum.enumerator`.
    """
    missing: dict[str, Missing] = {}
    structs: dict[str, list[tuple[str, str, Field]]] = {}
    lines: list[str] = []
    for key, candidates in wanted.items():
        slice_name, _, member = key.lstrip("?").partition(".")
        tried = ((path, types.resolve(path)) for path in candidates)
        path, found = next(((path, found) for path, found in tried if found), ("", None))
        if found is None:
            if not key.startswith("?"):
                missing[key] = Missing(key, tuple(candidates), _nearest(types, candidates))
            continue
        lines.append(f"#define HAVE_{slice_name}_{member} 1")
        structs.setdefault(slice_name, []).append((member, path.split(".")[0], found))
    for name, candidates in enums.items():
        values = (
            types.enumerators(path.split(".")[0]).get(path.split(".")[1]) for path in candidates
        )
        value = next((v for v in values if v is not None), None)
        if value is None:
            missing[name] = Missing(name, tuple(candidates), ())
        else:
            lines.append(f"#define {name} {value}")
    for slice_name in _inner_first(types, structs):
        lines += _emit(types, slice_name, structs[slice_name], set(structs))
    return Slices("\n".join(lines) + "\n", missing)


def _inner_first(types: Btf, structs: Mapping[str, Sequence[tuple[str, str, Field]]]) -> list[str]:
    """Order the slices, each after those that it holds by value."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        for _, _, found in structs[name]:
            inner = types.strip(found.type_id)
            if types.kind(inner) == b.ARRAY:
                inner = types.strip(types.array(inner)[0])
            is_struct = types.kind(inner) in (b.STRUCT, b.UNION)
            if is_struct and types.name(inner) in structs and types.name(inner) != name:
                visit(types.name(inner))
        if name not in ordered:
            ordered.append(name)

    for name in structs:
        visit(name)
    return ordered


def _emit(
    types: Btf, name: str, members: list[tuple[str, str, Field]], sliced: set[str]
) -> list[str]:
    """Return the lines of a slice. sliced: names of all slices."""
    owner = types.find(members[0][1], b.STRUCT, b.UNION)
    size = types.size(owner) if owner is not None and types.name(owner) == name else 0
    lines, getters = [f"struct {name} {{ union {{"], []
    for member, _, found in members:
        if found.bit_size:
            getters.append(_getter(name, member, found))
            continue
        pad, declaration = (
            found.bit_offset // 8,
            _declare(types, found.type_id, member, sliced - {name}),
        )
        gap = f"u8 pad_{member}[{pad}]; " if pad else ""
        lines.append(f"  struct {{ {gap}{declaration}; }} __attribute__((packed));")
    lines.append(f"  u8 whole[{size}];" if size else "")
    return [line for line in lines if line] + ["}; };"] + getters


def _declare(types: Btf, type_id: int, member: str, sliced: set[str]) -> str:
    """Declare a member of the same size and meaning.

    Pointers become addresses; structs that are sliced become slices, others bytes.
    """
    stripped = types.strip(type_id)
    kind, size = types.kind(stripped), types.size(stripped)
    if kind == b.ARRAY:
        element, count = types.array(stripped)
        return _declare(types, element, f"{member}[{count}]", sliced)
    if kind in (b.STRUCT, b.UNION):
        inner = types.name(stripped)
        if inner in sliced:
            return f"struct {inner} {member}"
        return f"u8 {member}[{size}]" if size not in _INTS else f"{_INTS[size]} {member}"
    signed = kind == b.INT and types.int_signed(stripped) and size in _INTS
    return f"{_INTS.get(size, 'u8').replace('u', 's' if signed else 'u')} {member}"


def _getter(name: str, member: str, found: Field) -> str:
    """Return a function that reads a bitfield: the bytes around it, shifted and masked.

    Bits of a little-endian machine.
    """
    start = found.bit_offset // 8
    shift = found.bit_offset - start * 8
    mask = (1 << found.bit_size) - 1
    bytes_needed = (shift + found.bit_size + 7) // 8
    return (
        f"static __always_inline u64 {name}_{member}(u64 at) {{ u64 v = 0; "
        f"bpf_probe_read_kernel(&v, {bytes_needed}, (void *)(at + {start})); "
        f"return (v >> {shift}) & {mask:#x}; }}"
    )


def _nearest(types: Btf, candidates: Sequence[str]) -> tuple[str, ...]:
    """Return names that look like what was asked for: members of the first candidate's struct.

    Where this kernel lacks that struct, names of structs.
    """
    path = candidates[0] if candidates else ""
    struct_name, *rest = path.split(".")
    type_id = types.find(struct_name, b.STRUCT, b.UNION)
    if type_id is None:
        close = difflib.get_close_matches(struct_name, list(types.names(b.STRUCT)), 3)
        return tuple(f"struct {name}" for name in close)
    names = [f.name for f in types.flat_members(type_id)]
    return tuple(difflib.get_close_matches(rest[0] if rest else "", names, 3, 0.5))
