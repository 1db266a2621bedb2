"""Write constants and argument places into a program's instructions before the verifier sees them.

One compiled program is loaded once for each function that it is attached to.

The C side (probes/include/common.h) marks two kinds of places: `CONSTANT(name)` is a move of a
number that stands for the name, `PLACE(name)` a load from the context at an offset that stands for
the name.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping

from tracer.errors import RmapdError

_FIRST_CONSTANT, _FIRST_PLACE = 0x5EED0000, 0x7000
_MOVE = 0xB7  # BPF_ALU64 | BPF_MOV | BPF_K
_LOAD = 0x79  # BPF_LDX | BPF_MEM | BPF_DW
_CALL = 0x85  # BPF_JMP | BPF_CALL
_PSEUDO_KFUNC_CALL = 2  # BPF_PSEUDO_KFUNC_CALL: the immediate is the BTF id of a function
FIRST_KFUNC = 1 << 30
"""A call of this number + the BTF id of a kfunc is a call of the kfunc."""
WIDE = 0x18  # BPF_LD | BPF_IMM | BPF_DW: two instructions long
NO_OFFSET = 0x7FFFFFFF
"""The constant `offset_of_X` where argument X is not a pointer to be followed."""


class Names:
    """The numbers that stand for names in compiled programs; one set for a plan.

    constants, places: name -> number. A place's number is an offset that a load can have.
    """

    def __init__(self, constants: Collection[str], places: Collection[str]) -> None:
        self.constants = {name: _FIRST_CONSTANT + n for n, name in enumerate(sorted(constants))}
        self.places = {name: _FIRST_PLACE + 8 * n for n, name in enumerate(sorted(places))}

    @property
    def header(self) -> str:
        """The C definitions that CONSTANT() and PLACE() use."""
        lines = [f"#define CONSTANT_{name} {number}" for name, number in self.constants.items()]
        lines += [f"#define PLACE_{name} {number}" for name, number in self.places.items()]
        return "\n".join(lines) + "\n"

    def patch(self, code: bytes, constants: Mapping[str, int], places: Mapping[str, int]) -> bytes:
        """Return the instructions with each mark replaced.

        constants: name -> value; one that is not given is 0, an `offset_of_…` NO_OFFSET. places:
        argument -> offset in the program's context; an argument that is not given is read as 0.
        Raises RmapdError where a constant does not fit 32 bits.
        """
        numbers = {
            number: (name, constants.get(name, NO_OFFSET if name.startswith("offset_of_") else 0))
            for name, number in self.constants.items()
        }
        offsets = {number: places.get(name) for name, number in self.places.items()}
        out = bytearray(code)
        for at, (opcode, registers, offset, immediate) in instructions(code):
            if opcode == _MOVE and immediate in numbers:
                name, value = numbers[immediate]
                if not -(1 << 31) <= value < 1 << 31:
                    raise RmapdError(
                        f"constant {name} of a probe does not fit 32 bits",
                        why=f"it is {value:#x}",
                        hint="correct the probe's .toml, or reinstall rmapd",
                    )
                struct.pack_into("<i", out, at + 4, value)
            elif opcode == _LOAD and offset in offsets:
                place = offsets[offset]
                if place is None:
                    struct.pack_into("<BBhi", out, at, _MOVE, registers & 0x0F, 0, 0)
                else:
                    struct.pack_into("<h", out, at + 2, place)
            elif opcode == _CALL and immediate >= FIRST_KFUNC:
                kfunc = immediate - FIRST_KFUNC
                struct.pack_into("<BBhi", out, at, _CALL, _PSEUDO_KFUNC_CALL << 4, 0, kfunc)
        return bytes(out)


def instructions(code: bytes) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yield (position, (opcode, registers, offset, immediate)) of each instruction.

    struct bpf_insn of include/uapi/linux/bpf.h. The second half of a wide one is skipped.
    """
    at = 0
    while at < len(code):
        fields = struct.unpack_from("<BBhi", code, at)
        yield at, fields
        at += 16 if fields[0] == WIDE else 8
