"""Where a function's arguments are on this kernel, from BTF: parameters by name, members of what they point to, registers or stack."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.attach.relocations import NO_OFFSET
from tracer.kernel.btf import Btf

_REGISTERS = (14, 13, 12, 11, 9, 8)  # di, si, dx, cx, r8, r9 in struct pt_regs of x86-64
_SP, _AX = 19, 10


@dataclass(frozen=True)
class Argument:
    """The parameter's number, counted in 8-byte slots, and the offset to follow from there (NO_OFFSET: the value itself)."""

    slot: int
    offset: int = NO_OFFSET


@dataclass(frozen=True)
class Signature:
    """A function as this kernel has it. `slots`: 8-byte slots of all parameters."""

    slots: int
    returns: bool
    parameters: str
    arguments: dict[str, Argument]
    lacking: tuple[str, ...]


def read(types: Btf, function: str, wanted: dict[str, str]) -> Signature:
    """Find the wanted arguments: `a | b` in order of preference, `p.member` follows a pointer, `p*` too, a last `?` makes it optional.

    `p:type.member` is for a `void *`: it points to this struct."""
    parameters, returned = types.signature(function) or ([], 0)
    first: dict[str, tuple[int, int]] = {}
    slots = 0
    for name, kind in parameters:
        first[name] = (slots, kind)
        slots += (types.size(kind) + 7) // 8  # an empty struct takes none
    found, lacking = {}, []
    for name, text in wanted.items():
        tried = (_argument(types, first, part.strip()) for part in text.rstrip("?").split("|"))
        argument = next((a for a in tried if a), None)
        if argument:
            found[name] = argument
        elif not text.endswith("?"):
            lacking.append(f"{name} ({text})")
    return Signature(
        slots, returned != 0, ", ".join(name for name, _ in parameters), found, tuple(lacking)
    )


def _argument(types: Btf, first: dict[str, tuple[int, int]], text: str) -> Argument | None:
    parameter, _, member = text.partition(".")
    parameter, _, cast = parameter.partition(":")
    follow = parameter.endswith("*")
    if parameter.rstrip("*") not in first:
        return None
    slot, kind = first[parameter.rstrip("*")]
    if follow:
        return Argument(slot, 0)
    if not member:
        return Argument(slot)
    owner = cast or types.pointed_to(kind)
    field = types.resolve(f"{owner}.{member}") if owner else None
    return Argument(slot, field.bit_offset // 8) if field else None


def in_trampoline(signature: Signature) -> tuple[dict[str, int], dict[str, int]]:
    """(places, constants) for fentry and fexit: the arguments in order, what is returned behind them."""
    places = {name: 8 * argument.slot for name, argument in signature.arguments.items()}
    if signature.returns:
        places["returned"] = 8 * signature.slots
    return places, {
        f"offset_of_{name}": argument.offset for name, argument in signature.arguments.items()
    }


def in_registers(signature: Signature) -> tuple[dict[str, int], dict[str, int]]:
    """(places, constants) for a kprobe: struct pt_regs; the seventh argument and later ones are on the stack above the return address."""
    places, constants = {"stack": 8 * _SP}, {}
    for name, argument in signature.arguments.items():
        on_stack = argument.slot >= len(_REGISTERS)
        places[name] = 8 * (_SP if on_stack else _REGISTERS[argument.slot])
        constants[f"offset_of_{name}"] = (
            8 * (argument.slot - len(_REGISTERS) + 1) if on_stack else argument.offset
        )
    return places, constants


def too_far(signature: Signature) -> tuple[str, ...]:
    """Arguments that a kprobe cannot give: members of what an argument on the stack points to. A program follows one pointer."""
    return tuple(
        name
        for name, a in signature.arguments.items()
        if a.slot >= len(_REGISTERS) and a.offset != NO_OFFSET
    )


def at_return(signature: Signature) -> tuple[dict[str, int], dict[str, int]]:
    """(places, constants) for a kretprobe: what is returned, and the stack with the return address taken off it."""
    return {"stack": 8 * _SP} | ({"returned": 8 * _AX} if signature.returns else {}), {"popped": 8}
