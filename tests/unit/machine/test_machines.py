"""Which machines there are, and where their kprobes find arguments."""

from __future__ import annotations

import pytest

from tests.support.btf_blob import Blob
from tracer.attach import arguments
from tracer.errors import RmapdError
from tracer.kernel.btf import Btf
from tracer.machine import aarch64, x86_64
from tracer.machine.known import machine


def test_machine_is_found_by_its_name() -> None:
    assert machine("x86_64") is x86_64.MACHINE
    assert machine("aarch64") is aarch64.MACHINE


def test_unknown_machine_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(RmapdError, match="page tables of riscv64") as raised:
        machine("riscv64")
    assert "x86_64 and aarch64" in (raised.value.why or "")


def signature(count: int) -> arguments.Signature:
    blob = Blob()
    number = blob.integer("unsigned long", 8)
    blob.function("many", {f"p{n}": number for n in range(count)}, number)
    return arguments.find(Btf(blob.bytes()), "many", {f"p{n}": f"p{n}" for n in range(count)})


def test_arm64_has_eight_arguments_in_registers_and_the_rest_at_the_stack_pointer() -> None:
    """AAPCS64; include/asm/ptrace.h: regs[0] to regs[30], sp."""
    places, constants = arguments.at_kprobe(signature(10), aarch64.MACHINE.registers)
    assert [places[f"p{n}"] for n in range(8)] == [8 * n for n in range(8)]
    assert (places["p8"], places["p9"]) == (248, 248)
    assert (constants["offset_of_p8"], constants["offset_of_p9"]) == (0, 8)


def test_arm64_returns_in_the_first_register_with_the_stack_pointer_of_the_entry() -> None:
    found = arguments.at_kretprobe(signature(1), aarch64.MACHINE.registers)
    assert found == ({"stack": 248, "returned": 0}, {"popped": 0})
