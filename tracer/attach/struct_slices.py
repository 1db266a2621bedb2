"""Slices: C structs that hold only the members the probes name, each at its exact offset in the running kernel.

A stem's `[types]` table maps `slice.member` to candidates `struct.path.to.member`, in order of preference, so a renamed or
moved member is one more candidate. Every member gets an anonymous struct of its own inside a union: overlapping members
(kernel unions) and gaps need no special case. A bitfield becomes a getter `slice_member(address)`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tracer.kernel import btf as b
from tracer.kernel.btf import Btf, Field

_INTS = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}


@dataclass(frozen=True)
class Missing:
    """A member that none of its candidates provides."""

    member: str
    candidates: tuple[str, ...]
    nearest: tuple[str, ...]

    def __str__(self) -> str:
        near = f"; nearest: {', '.join(self.nearest)}" if self.nearest else ""
        return f"{self.member} is not in this kernel's BTF (candidates: {', '.join(self.candidates)}{near})"


@dataclass
class Slices:
    """The header text, and what could not be sliced."""

    header: str = ""
    missing: dict[str, Missing] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)


def make(
    types: Btf, wanted: Mapping[str, Sequence[str]], enums: Mapping[str, Sequence[str]]
) -> Slices:
    """Resolve every wanted member and enumerator; the optional ones carry a leading `?` and yield HAVE_… when found."""
    out = Slices()
    structs: dict[str, list[tuple[str, str, Field]]] = {}
    lines: list[str] = []
    for key, candidates in wanted.items():
        slice_name, _, member = key.lstrip("?").partition(".")
        tried = ((path, types.resolve(path)) for path in candidates)
        path, found = next(((path, found) for path, found in tried if found), ("", None))
        if found is None:
            if not key.startswith("?"):
                out.missing[key] = Missing(key, tuple(candidates), _nearest(types, candidates))
            continue
        out.found[key.lstrip("?")] = path
        lines.append(f"#define HAVE_{slice_name}_{member} 1")
        structs.setdefault(slice_name, []).append((member, path.split(".")[0], found))
    for name, candidates in enums.items():
        values = (
            types.enumerators(path.split(".")[0]).get(path.split(".")[1]) for path in candidates
        )
        value = next((v for v in values if v is not None), None)
        if value is None:
            out.missing[name] = Missing(name, tuple(candidates), ())
        else:
            lines.append(f"#define {name} {value}")
    for slice_name in _inner_first(types, structs):
        lines += _emit(types, slice_name, structs[slice_name], set(structs))
    out.header = "\n".join(lines) + "\n"
    return out


def _inner_first(types: Btf, structs: Mapping[str, Sequence[tuple[str, str, Field]]]) -> list[str]:
    """The slices, each after those that it holds by value."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        for _, _, found in structs[name]:
            bare = types.strip(found.type_id)
            if types.kind(bare) == b.ARRAY:
                bare = types.strip(types.array(bare)[0])
            if (
                types.kind(bare) in (b.STRUCT, b.UNION)
                and types.name(bare) in structs
                and types.name(bare) != name
            ):
                visit(types.name(bare))
        if name not in ordered:
            ordered.append(name)

    for name in structs:
        visit(name)
    return ordered


def _emit(
    types: Btf, name: str, members: list[tuple[str, str, Field]], sliced: set[str]
) -> list[str]:
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
    """A declaration of the same size and meaning: pointers as addresses, structs as slices where sliced, else as bytes."""
    bare = types.strip(type_id)
    kind, size = types.kind(bare), types.size(bare)
    if kind == b.ARRAY:
        element, count = types.array(bare)
        return _declare(types, element, f"{member}[{count}]", sliced)
    if kind in (b.STRUCT, b.UNION):
        inner = types.name(bare)
        if inner in sliced:
            return f"struct {inner} {member}"
        return f"u8 {member}[{size}]" if size not in _INTS else f"{_INTS[size]} {member}"
    signed = kind == b.INT and types.int_signed(bare) and size in _INTS
    return f"{_INTS.get(size, 'u8').replace('u', 's' if signed else 'u')} {member}"


def _getter(name: str, member: str, found: Field) -> str:
    """A function that reads a bitfield: eight bytes around it, shifted and masked (little endian)."""
    start = found.bit_offset // 8
    shift = found.bit_offset - start * 8
    mask = (1 << found.bit_size) - 1
    bytes_needed = (shift + found.bit_size + 7) // 8
    return (
        f"static __always_inline u64 {name}_{member}(u64 at) {{ u64 v = 0; "
        f"bpf_probe_read_kernel(&v, {bytes_needed}, (void *)(at + {start})); return (v >> {shift}) & {mask:#x}; }}"
    )


def _nearest(types: Btf, candidates: Sequence[str]) -> tuple[str, ...]:
    """Members of the first candidate's struct (or structs) that look like what was asked for."""
    path = candidates[0] if candidates else ""
    struct_name, *rest = path.split(".")
    type_id = types.find(struct_name, b.STRUCT, b.UNION)
    if type_id is None:
        close = difflib.get_close_matches(struct_name, list(types.names(b.STRUCT)), 3)
        return tuple(f"struct {name}" for name in close)
    names = [f.name for f in types.flat_members(type_id)]
    return tuple(difflib.get_close_matches(rest[0] if rest else "", names, 3, 0.5))
