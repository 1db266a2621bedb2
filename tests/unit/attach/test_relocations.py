"""What the loader writes into the instructions of a program."""

from __future__ import annotations

import struct

import pytest

from tracer.attach.relocations import FIRST_KFUNC, NO_OFFSET, Names
from tracer.errors import RmapdError

NAMES = Names({"kind", "window", "offset_of_vma"}, {"vma", "returned"})
MOVE, LOAD, WIDE, MOVE32, ADD, CALL = 0xB7, 0x79, 0x18, 0xB4, 0x07, 0x85


def instruction(
    opcode: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0
) -> bytes:
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, immediate)


def constant(name: str, target: int = 3) -> bytes:
    return instruction(MOVE, target, immediate=NAMES.constants[name])


def place(name: str, target: int = 2, source: int = 6) -> bytes:
    return instruction(LOAD, target, source, NAMES.places[name])


def test_header_defines_every_number_once() -> None:
    words = [line.split() for line in NAMES.header.splitlines()]
    assert [word[1] for word in words] == [
        *("CONSTANT_kind", "CONSTANT_offset_of_vma", "CONSTANT_window"),
        *("PLACE_returned", "PLACE_vma"),
    ]
    assert len({word[2] for word in words}) == 5


def test_numbers_do_not_depend_on_the_order_of_names() -> None:
    assert Names(("b", "a"), ("d", "c")).header == Names(("a", "b"), ("c", "d")).header


def test_numbers_of_places_are_offsets_that_a_load_can_have() -> None:
    names = Names((), [f"p{n:03}" for n in range(400)])
    assert all(0 < number < 1 << 15 and number % 8 == 0 for number in names.places.values())


@pytest.mark.parametrize("value", [0, 1, -1, (1 << 31) - 1, -(1 << 31)])
def test_constant_is_written_into_its_instruction(value: int) -> None:
    assert NAMES.patch(constant("kind"), {"kind": value}, {}) == instruction(
        MOVE, 3, immediate=value
    )


def test_constant_that_is_not_given_is_zero_or_no_offset() -> None:
    code = constant("kind") + constant("offset_of_vma")
    assert NAMES.patch(code, {}, {}) == instruction(MOVE, 3) + instruction(
        MOVE, 3, immediate=NO_OFFSET
    )


@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1, 1 << 63])
def test_constant_that_does_not_fit_is_an_error(value: int) -> None:
    with pytest.raises(RmapdError, match="constant kind of a probe does not fit"):
        NAMES.patch(constant("kind"), {"kind": value}, {})


def test_unused_constant_that_does_not_fit_is_no_error() -> None:
    assert NAMES.patch(constant("window"), {"kind": 1 << 40}, {}) == instruction(MOVE, 3)


def test_place_of_an_argument_is_written_into_its_load() -> None:
    assert NAMES.patch(place("vma"), {}, {"vma": 112}) == instruction(LOAD, 2, 6, 112)
    assert NAMES.patch(place("vma"), {}, {"vma": 0}) == instruction(LOAD, 2, 6, 0), (
        "the first argument is no missing one"
    )


def test_load_of_an_argument_that_the_function_lacks_becomes_zero() -> None:
    assert NAMES.patch(place("vma", target=9), {}, {"returned": 8}) == instruction(MOVE, 9)


def test_unmarked_instructions_stay_as_they_are() -> None:
    number = NAMES.constants["kind"]
    code = b"".join(
        (
            instruction(ADD, 1, immediate=number),
            instruction(MOVE32, 1, immediate=number),
            instruction(MOVE, 1, immediate=5),
            instruction(LOAD, 1, 10, -8),
            instruction(0x7B, 10, 1, NAMES.places["vma"]),  # a store
            instruction(0x95),
        )
    )
    assert NAMES.patch(code, {"kind": 7}, {"vma": 0}) == code


def test_second_half_of_a_wide_instruction_is_skipped() -> None:
    """The kernel wants its first byte to be 0; the test makes one that a wrong step would read."""
    wide = instruction(WIDE, 1, immediate=NAMES.constants["kind"]) + constant("kind")
    assert NAMES.patch(wide + constant("kind"), {"kind": 7}, {}) == wide + instruction(
        MOVE, 3, immediate=7
    )


def test_every_mark_of_a_program_is_replaced() -> None:
    code = place("vma") + constant("kind") + place("vma", target=4) + constant("kind", target=5)
    patched = NAMES.patch(code, {"kind": 7}, {"vma": 16})
    assert patched == b"".join(
        (
            instruction(LOAD, 2, 6, 16),
            instruction(MOVE, 3, immediate=7),
            instruction(LOAD, 4, 6, 16),
            instruction(MOVE, 5, immediate=7),
        )
    )
    assert code == place("vma") + constant("kind") + place("vma", target=4) + constant(
        "kind", target=5
    ), "the compiled program is not changed"


def test_call_of_a_kfunc_has_its_btf_id_and_others_stay() -> None:
    helper, bpf_function = instruction(CALL, immediate=113), instruction(CALL, source=1)
    kfunc = instruction(CALL, immediate=FIRST_KFUNC + 65486)
    assert NAMES.patch(helper + kfunc + bpf_function, {}, {}) == (
        helper + instruction(CALL, source=2, immediate=65486) + bpf_function
    )


def test_move_of_a_number_like_that_of_a_kfunc_stays() -> None:
    code = instruction(MOVE, 3, immediate=FIRST_KFUNC + 1)
    assert NAMES.patch(code, {}, {}) == code
