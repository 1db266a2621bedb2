"""Where arguments are: found by name and member, in contexts, registers and on the stack."""

from __future__ import annotations

import pytest

from tests.support.btf_blob import Blob
from tracer.attach import arguments
from tracer.attach.arguments import Argument, Signature
from tracer.attach.relocations import NO_OFFSET
from tracer.kernel.btf import Btf
from tracer.machine import x86_64

REGISTERS = x86_64.MACHINE.registers

SP, AX = 19 * 8, 10 * 8


def types() -> Btf:
    blob = Blob()
    u64, u32, byte = (
        blob.integer("unsigned long", 8),
        blob.integer("unsigned int", 4),
        blob.integer("char", 1),
    )
    vma = blob.pointer(
        blob.record("vm_area_struct", 16, [("vm_start", u64, 0), ("vm_end", u64, 64)])
    )
    mm = blob.pointer(blob.record("mm_struct", 8, []))
    inner = blob.record("", 16, [("start", u64, 0), ("target", vma, 64)])
    vmg = blob.pointer(blob.record("vma_merge_struct", 40, [("mm", mm, 64), ("", inner, 128)]))
    pair, empty = (
        blob.record("pair", 16, [("a", u64, 0), ("b", u64, 64)]),
        blob.record("empty", 0, []),
    )
    odd = blob.typedef("odd_t", blob.record("odd", 12, [("a", u64, 0), ("b", u32, 64)]))
    blob.function("expand", {"vmg": vmg}, u32)
    blob.function("plain", {"mm": mm, "vma": vma, "flag": byte})
    blob.function("copy", {"vmap": blob.pointer(vma), "len": u64}, vma)
    blob.function("by_value", {"first": pair, "vma": vma, "second": odd, "len": u32}, u32)
    blob.function("with_empty", {"nothing": empty, "vma": vma})
    blob.function("many", {f"p{n}": u64 for n in range(9)} | {"vmg": vmg}, u32)
    blob.function("none", {})
    return Btf(blob.bytes())


TYPES = types()


def found(function: str, **wanted: str) -> Signature:
    return arguments.find(TYPES, function, wanted)


def test_parameter_is_found_by_its_name() -> None:
    seen = found("plain", vma="vma", flag="flag")
    assert seen == Signature(
        3, False, "mm, vma, flag", {"vma": Argument(1), "flag": Argument(2)}, ()
    )


def test_member_behind_a_pointer_has_its_parameters_slot_and_its_offset() -> None:
    assert found("expand", mm="vmg.mm", vma="vmg.target", start="vmg.start").arguments == {
        "mm": Argument(0, 8),
        "vma": Argument(0, 24),
        "start": Argument(0, 16),
    }


def test_starred_parameter_is_read_at_offset_zero() -> None:
    assert found("copy", vma="vmap*").arguments == {"vma": Argument(0, 0)}


@pytest.mark.parametrize(
    ("wanted", "argument"),
    [
        ("vmg.target | vma", Argument(1)),
        ("vma | mm", Argument(1)),
        ("mm | vma", Argument(0)),
        ("vma.dgp | vma.vm_end", Argument(1, 8)),
        ("other? ", None),
        ("other | another?", None),
        ("vma?", Argument(1)),
    ],
)
def test_first_alternative_that_the_function_has_is_taken(
    wanted: str, argument: Argument | None
) -> None:
    seen = found("plain", it=wanted.strip())
    assert (seen.arguments.get("it"), seen.lacking) == (argument, ())


@pytest.mark.parametrize(
    "wanted", ["other", "vma.dgp", "flag.bit", "other*", "vmg.mm | other", "vma:unknown.x"]
)
def test_argument_that_the_function_lacks_is_reported(wanted: str) -> None:
    assert found("plain", it=wanted).lacking == (f"it ({wanted})",)


def test_every_argument_of_a_function_unknown_to_btf_is_lacking() -> None:
    assert found("gone", vma="vma") == Signature(0, False, "", {}, ("vma (vma)",))


def test_fentry_context_has_arguments_in_order_and_the_returned_value_behind_them() -> None:
    assert arguments.at_fentry(found("expand", vma="vmg.target")) == (
        {"vma": 0, "returned": 8},
        {"offset_of_vma": 24},
    )
    assert arguments.at_fentry(found("plain", vma="vma")) == (
        {"vma": 8},
        {"offset_of_vma": NO_OFFSET},
    ), "void returns nothing"
    assert arguments.at_fentry(found("none")) == ({}, {})


def test_struct_by_value_takes_a_slot_for_each_eight_bytes() -> None:
    seen = found("by_value", vma="vma", len="len")
    assert (seen.slots, seen.arguments) == (6, {"vma": Argument(2), "len": Argument(5)})
    assert arguments.at_fentry(seen)[0] == {"vma": 16, "len": 40, "returned": 48}


def test_empty_struct_takes_no_slot() -> None:
    """struct vm_userfaultfd_ctx without CONFIG_USERFAULTFD."""
    assert found("with_empty", vma="vma").arguments == {"vma": Argument(0)}
    assert found("with_empty", it="nothing?").arguments == {}, "what follows it is not it"


def test_first_six_arguments_of_a_kprobe_are_in_registers() -> None:
    wanted = {f"p{n}": f"p{n}" for n in range(6)}
    places, constants = arguments.at_kprobe(found("many", **wanted), REGISTERS)
    assert places == {
        "stack": SP,
        "p0": 14 * 8,
        "p1": 13 * 8,
        "p2": 12 * 8,
        "p3": 11 * 8,
        "p4": 9 * 8,
        "p5": 8 * 8,
    }
    assert set(constants.values()) == {NO_OFFSET}


def test_seventh_argument_of_a_kprobe_is_above_the_return_address() -> None:
    places, constants = arguments.at_kprobe(found("many", p6="p6", p8="p8"), REGISTERS)
    assert places == {"stack": SP, "p6": SP, "p8": SP}
    assert constants == {"offset_of_p6": 8, "offset_of_p8": 24}


def test_member_behind_an_argument_on_the_stack_is_unreachable_from_a_kprobe() -> None:
    """A program follows one pointer; an fentry program finds this argument in its context."""
    seen = found("many", mm="vmg.mm", p0="p0", p6="p6")
    assert arguments.unreachable_from_kprobe(seen, REGISTERS) == ("mm",)
    assert arguments.unreachable_from_kprobe(found("expand", mm="vmg.mm"), REGISTERS) == ()
    assert arguments.at_fentry(seen)[0]["mm"] == 72


def test_kretprobe_has_the_returned_value_and_a_popped_stack() -> None:
    assert arguments.at_kretprobe(found("expand"), REGISTERS) == (
        {"stack": SP, "returned": AX},
        {"popped": 8},
    )
    assert arguments.at_kretprobe(found("plain"), REGISTERS) == ({"stack": SP}, {"popped": 8})
