"""Where a function's arguments are on this kernel, from BTF.

A hook names its arguments by parameter (`vma`), by a member of what a parameter points to
(`vmg.target`), or as what a pointer points to (`vmap*`). They are then in the context of an fentry
or fexit program, in the registers that a kprobe saw, or on the stack.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracer.attach.relocations import NO_OFFSET
from tracer.kernel.btf import Btf
from tracer.machine.base import Registers

Located = tuple[dict[str, int], dict[str, int]]
"""(argument -> offset of its place in a program's context, name -> constant of the program)."""


@dataclass(frozen=True)
class Argument:
    """Where an argument is.

    slot: number of the parameter, counted in slots of eight bytes. offset: of what to read from
    there; NO_OFFSET where the parameter itself is the argument.
    """

    slot: int
    offset: int = NO_OFFSET


@dataclass(frozen=True)
class Signature:
    """A function as this kernel has it.

    slots: slots of eight bytes that all parameters take. returns: whether it is not void.
    parameters: their names, for messages. lacking: arguments that it does not have, each with what
    was asked for.
    """

    slots: int
    returns: bool
    parameters: str
    arguments: dict[str, Argument]
    lacking: tuple[str, ...]


def find(types: Btf, function: str, wanted: dict[str, str]) -> Signature:
    """Find the arguments of a function.

    wanted: argument -> `a | b` in order of preference. `p.member` follows a pointer, `p*` reads
    what it points to, `p:type.member` does so for a `void *` to a struct of this type. A last `?`
    makes the argument optional.
    """
    parameters, returned = types.signature(function) or ([], 0)
    first: dict[str, tuple[int, int]] = {}
    slots = 0
    for name, type_id in parameters:
        size = types.size(type_id)
        if size:  # an empty struct takes no slot
            first[name] = (slots, type_id)
        slots += (size + 7) // 8
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
    """Find one argument. first: parameter -> (its first slot, its type)."""
    parameter, _, member = text.partition(".")
    parameter, _, cast = parameter.partition(":")
    follow = parameter.endswith("*")
    if parameter.rstrip("*") not in first:
        return None
    slot, type_id = first[parameter.rstrip("*")]
    if follow:
        return Argument(slot, 0)
    if not member:
        return Argument(slot)
    owner = cast or types.pointed_to(type_id)
    field = types.resolve(f"{owner}.{member}") if owner else None
    return Argument(slot, field.bit_offset // 8) if field else None


def at_fentry(signature: Signature) -> Located:
    """Locate arguments for fentry and fexit: in order, and the returned value behind them."""
    places = {name: 8 * argument.slot for name, argument in signature.arguments.items()}
    if signature.returns:
        places["returned"] = 8 * signature.slots
    return places, {
        f"offset_of_{name}": argument.offset for name, argument in signature.arguments.items()
    }


def at_kprobe(signature: Signature, registers: Registers) -> Located:
    """Locate arguments for a kprobe: in registers, and the last ones on the stack."""
    first = registers.arguments
    places, constants = {"stack": registers.stack_pointer}, {}
    for name, argument in signature.arguments.items():
        on_stack = argument.slot >= len(first)
        places[name] = registers.stack_pointer if on_stack else first[argument.slot]
        constants[f"offset_of_{name}"] = (
            8 * (argument.slot - len(first) + registers.pushed) if on_stack else argument.offset
        )
    return places, constants


def unreachable_from_kprobe(signature: Signature, registers: Registers) -> tuple[str, ...]:
    """Return the arguments that a kprobe program cannot read.

    These are members of what an argument on the stack points to: a program follows one pointer.
    """
    return tuple(
        name
        for name, a in signature.arguments.items()
        if a.slot >= len(registers.arguments) and a.offset != NO_OFFSET
    )


def at_kretprobe(signature: Signature, registers: Registers) -> Located:
    """Locate what a kretprobe has: the returned value, and a stack without the return address."""
    places = {"stack": registers.stack_pointer}
    if signature.returns:
        places["returned"] = registers.returned
    return places, {"popped": registers.popped}
