"""LOAD() of probes/include/common.h gives what bpf_probe_read_kernel() gives, at any address."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tracer.attach import bcc_headers, loader, resolver
from tracer.bpf.maps import Map
from tracer.bpf.programs import Program
from tracer.config import Config
from tracer.daemon.probes import probes_folder, running_kernel
from tracer.kernel.running import Kernel
from tracer.tables.c_structs import Layouts

_HOOKS = """title = "loads at an address"
[types]
"task_struct.flags" = ["task_struct.flags"]
"task_struct.start_time" = ["task_struct.start_time"]
[[hook]]
name = "loads"
candidates = ["run:loads"]
note = "runs on demand"
"""
_PROGRAM = """
#include "common.h"
struct answers { s64 loaded[6], read[6]; };
BPF_ARRAY(answers, struct answers, 1);
#define BOTH(n, type) \\
	a->loaded[n] = LOAD(type, at); \\
	type v##n = 0; \\
	bpf_probe_read_kernel(&v##n, sizeof(type), (void *)at); \\
	a->read[n] = v##n;
HOOK(loads)
{
	u32 zero = 0;
	struct answers *a = answers.lookup(&zero);
	u64 at = ctx->args[0];
	if (!a)
		return 0;
	if (!at)
		at = bpf_get_current_task() + OFFSET(task_struct, start_time);
	BOTH(0, u8)
	BOTH(1, u16)
	BOTH(2, u32)
	BOTH(3, u64)
	BOTH(4, s8)
	BOTH(5, s32)
	return 0;
}
"""
_CALL_OF_KFUNC = struct.pack("<BBh", 0x85, 0x20, 0)
_OWN = mmap.mmap(-1, 4096)
BAD = {
    "null": 8,
    "user": ctypes.addressof(ctypes.c_char.from_buffer(_OWN)),
    "last user page": (1 << 47) - 4096,
    "behind user space": 1 << 47,
    "not canonical": 0x9000_0000_0000_0000,
    "poison": 0xDEAD_0000_0000_0100,
    "before the kernel's half": 0xFF00_0000_0000_0000 - 4,
    "first of the kernel's half": 0xFFFF_8000_0000_0000,
    "error pointer": (1 << 64) - 12,
    "across the end": (1 << 64) - 4,
}


class Loads:
    """The program, and its answers at an address: (by LOAD(), by bpf_probe_read_kernel())."""

    def __init__(self, folder: Path, kernel: Kernel) -> None:
        (folder / "loads.toml").write_text(_HOOKS)
        (folder / "loads.bpf.c").write_text(_PROGRAM)
        plan = resolver.make_plan(kernel, [folder])
        include = probes_folder() / "include"
        build = loader.BuildEnvironment(
            kernel,
            Layouts.read(include / "shared.h").constants,
            include,
            Config().maps.sizes(),
        )
        headers = folder / "headers"
        headers.mkdir()
        bcc_headers.write(headers, kernel)
        compiled = loader.compile_probe_objects(
            plan.header, plan.probe_objects, build, str(headers)
        )
        (point,) = plan.probe_objects[0].hooks[0].methods[0].points
        self.code = plan.names.patch(compiled.code["rmapd_loads"], {}, {})
        self.maps: dict[str, Map] = compiled.maps
        self.program: Program = loader.ProgramLoader(compiled.code, plan.names, build).load(
            replace(point, symbol="")
        )

    def at(self, address: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        self.program.run(address)
        both = struct.unpack("<12q", self.maps["answers"].lookup(bytes(4)) or b"")
        return both[:6], both[6:]

    def close(self) -> None:
        self.program.close()
        for table in self.maps.values():
            table.close()


@pytest.fixture(scope="module", params=["plain", "helper"])
def loads(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Loads]:
    """The program as this kernel takes it, and as one without bpf_rdonly_cast() does."""
    kernel = running_kernel()
    if request.param == "helper":
        kernel.__dict__["plain_loads_refused"] = "not wanted"
    made = Loads(tmp_path_factory.mktemp(request.param), kernel)
    assert (_CALL_OF_KFUNC in made.code) is not bool(kernel.plain_loads_refused)
    yield made
    made.close()


@pytest.mark.parametrize("address", BAD.values(), ids=BAD)
def test_bad_address_yields_zero(loads: Loads, address: int) -> None:
    _OWN[:8] = b"\xff" * 8
    loads.at(0)  # what is left of another run is not zero
    assert loads.at(address) == ((0,) * 6, (0,) * 6)


def test_numbers_of_each_size_and_sign_are_read(loads: Loads) -> None:
    loaded, read = loads.at(0)
    assert loaded == read
    assert loaded[3] > 0, "start_time of this task"
    assert loaded[:3] == tuple(loaded[3] % (1 << bits) for bits in (8, 16, 32))


def test_code_of_the_kernel_is_read_at_any_alignment(loads: Loads) -> None:
    text = running_kernel().address_of("_text")
    seen = [loads.at(text + offset) for offset in range(64)]
    assert all(loaded == read for loaded, read in seen)
    assert any(loaded[4] < 0 for loaded, _ in seen)
    assert any(loaded[5] < 0 for loaded, _ in seen)


def test_kernel_takes_plain_loads_from_6_10_on() -> None:
    kernel = running_kernel()
    young = kernel.types.function("bpf_preempt_disable") is not None
    assert young is not bool(kernel.plain_loads_refused)
