"""What `rmapd compile` makes elsewhere is found where it fits, and only there."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.native import PROBES, attach_plan, synthetic_kernel
from tracer.attach import compiler, loader, objects, plain_loads, translation_unit
from tracer.attach.compile_cache import CacheEntry, CompileCache, MadeFor, MapShape
from tracer.attach.compiler import Compiled, NoCompiler, compile_in_child
from tracer.attach.objects import Objects, for_types, misfit
from tracer.attach.plan import HookState
from tracer.errors import RmapdError, Temporary
from tracer.kernel.btf import Btf
from tracer.kernel.running import Kernel

SIZES = {"LEDGER_ROWS": 64}
MADE = MadeFor("1.0", "sources", "6.1.0", "types", SIZES, True, "clang 14")
WIDE_FD = struct.pack("<BBhi", 0x18, 1 << 4 | 1, 0, 0)
"""The first half of r1 = map 0."""


def code(number: int) -> bytes:
    """Return instructions that name a map."""
    return WIDE_FD[:4] + struct.pack("<i", number) + bytes(8)


def made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, types: Btf, **changes: Any
) -> CompileCache:
    """Write what `rmapd compile` makes for these types, with a compiler that compiles nothing."""
    monkeypatch.setattr(objects, "compile_in_child", lambda *_: Compiled({}, {}))
    maps = {
        name: MapShape(1, 4, 8, 1, 0) for name in ("params", "audit_look", "holds", "last_waits")
    }
    entry = CacheEntry(maps, {"rmapd_both": code(0) + code(1), "rmapd_waits": code(3)})
    monkeypatch.setattr(objects, "entry_of", lambda _compiled: entry)
    monkeypatch.setattr(objects, "bcc_version", lambda: "0.26")
    monkeypatch.setattr(objects, "clang_version", lambda: "clang 14")
    for one in for_types(types, "vmlinux.btf", [PROBES], SIZES):
        headers = tmp_path / "headers"
        objects.make(replace(one, **changes), tmp_path / "cache", headers)
    return CompileCache(tmp_path / "cache")


def host(types: Btf, *, refused: str = "left out", hooks: bool = True) -> Objects:
    """Return what a host with these types looks for."""
    kernel = synthetic_kernel()
    kernel = replace(kernel, btf=types, release="host", plain_load_probe=lambda _types: refused)
    if hooks:
        kernel.symbols = dict.fromkeys(types.names(12), 1)
        kernel.__dict__["kprobe_refused"] = ""
    return Objects(kernel, [PROBES], SIZES)


TYPES = synthetic_kernel().types


@pytest.mark.parametrize("hooks", [True, False])
def test_objects_fit_whatever_the_host_lets_be_hooked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hooks: bool
) -> None:
    cache = made(tmp_path, monkeypatch, TYPES)
    assert host(TYPES, hooks=hooks).name(cache) in cache.made_elsewhere()


def test_objects_are_made_with_and_without_plain_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plain_loads, "lacking", lambda _types: "")
    monkeypatch.setattr(plain_loads, "_ids", lambda _types: (7, 9))
    cache = made(tmp_path, monkeypatch, TYPES)
    names = {host(TYPES, refused=refused).name(cache) for refused in ("", "refused")}
    assert len(names) == 2
    assert names == set(cache.made_elsewhere())


def test_objects_have_every_program_of_the_probes() -> None:
    wanted = {
        translation_unit.c_function(point.program)
        for probe_object in attach_plan().probe_objects
        for hook in probe_object.hooks
        if hook.state is HookState.READY
        for method in hook.methods
        for point in method.points
    }
    text = host(TYPES).text
    assert len(wanted) > 50
    assert wanted - set(translation_unit.functions(text)) == set()


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of maps that are created, each as /dev/null."""
    names: list[str] = []

    def create_map(name: str, *_: object) -> int:
        names.append(name)
        return os.open(os.devnull, os.O_RDONLY)

    monkeypatch.setattr(compiler, "create_map", create_map)
    return names


def test_maps_of_probe_objects_that_are_not_usable_are_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, created: list[str]
) -> None:
    cache, here = made(tmp_path, monkeypatch, TYPES), host(TYPES)
    usable = [one for one in here.plan.probe_objects if one.name == "audit"]
    found = here.find(cache, usable)
    assert found
    assert "vmlinux.btf" in found.origin
    assert created == ["params", "audit_look"], "those that its text names, of all"
    assert set(found.maps) == {"params", "audit_look"}
    assert set(found.code) == {"rmapd_both"}, "the other names a map of waits"
    fds = [table.fd for table in found.maps.values()]
    assert found.code["rmapd_both"] == code(fds[0]) + code(fds[1])
    for table in found.maps.values():
        table.close()


@pytest.mark.parametrize("mode", [0o666, 0o000])
def test_objects_that_are_not_to_be_trusted_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, created: list[str], mode: int
) -> None:
    cache, here = made(tmp_path, monkeypatch, TYPES), host(TYPES)
    (path,) = (cache.folder / name for name in cache.made_elsewhere())
    if mode:
        path.chmod(mode)
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert here.find(cache, here.plan.probe_objects) is None
    assert created == []
    (said,) = here.misfits(cache)
    assert "damaged, or another user may write to it" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rmapd": "0.9"}, "made by rmapd 0.9, this is 1.0"),
        ({"sources": "x"}, "made from other probes than this rmapd has"),
        ({"types": "x"}, "made for 6.1.0, whose types (BTF) are not those of here"),
        ({"sizes": {"LEDGER_ROWS": 32}}, "other [maps] in the configuration: ledger_rows 32 -> 64"),
        ({"plain_loads": False}, "made without plain loads"),
        ({}, "made by another build of this version"),
    ],
)
def test_objects_that_do_not_fit_say_why(change: dict[str, Any], says: str) -> None:
    made = {name: getattr(MADE, name) for name in MADE.__struct_fields__} | change
    here = MadeFor("1.0", "sources", "here", "types", SIZES, True, "")
    assert says in misfit(MadeFor(**made), here)


def test_objects_for_other_types_or_sizes_have_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = made(tmp_path, monkeypatch, TYPES, sizes={"LEDGER_ROWS": 32})
    here = host(TYPES)
    assert here.name(cache) not in cache.made_elsewhere()
    (said,) = here.misfits(cache)
    assert said.endswith("ledger_rows 32 -> 64")


def start(
    cache: CompileCache, here: Objects, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Compiled | None]:
    """Return a function that starts where bcc cannot be imported, and attaches nothing."""
    usable = [one for one in attach_plan().probe_objects if one.usable]
    taken: list[Compiled] = []

    def ahead(programs: loader.ProgramLoader, _points: object) -> Any:
        raise RmapdError(f"loads {sorted(programs.code)} with {id(programs.names)}")

    monkeypatch.setattr(loader, "LoadedAhead", ahead)
    build = loader.BuildEnvironment(here.kernel, {}, PROBES / "include", SIZES, cache, here)
    plan = replace(attach_plan(), probe_objects=tuple(usable))

    def run() -> Compiled | None:
        loader.load(plan, build, statistics=False)
        return taken[0] if taken else None

    return run


def test_start_with_fitting_objects_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, created: list[str]
) -> None:
    cache, here = made(tmp_path, monkeypatch, TYPES), host(TYPES)
    monkeypatch.setattr(loader, "compile_text", lambda *_: pytest.fail("it compiles"))
    with pytest.raises(RmapdError, match=f"loads .*rmapd_both.* with {id(here.plan.names)}"):
        start(cache, here, monkeypatch)()
    assert created


def test_start_without_memory_for_objects_that_fit_is_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a host without a compiler: systemd starts rmapd again."""
    cache, here = made(tmp_path, monkeypatch, TYPES), host(TYPES)

    def create_map(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(compiler, "create_map", create_map)
    with pytest.raises(Temporary, match="Cannot allocate memory"):
        start(cache, here, monkeypatch)()


def test_start_without_compiler_says_why_no_objects_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child of compile_in_child() is real, and its bcc cannot be imported."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python/bcc.py").write_text("raise ImportError('No module named bcc')")
    monkeypatch.syspath_prepend(tmp_path / "python")
    here, none = host(TYPES), CompileCache(tmp_path / "none")
    with pytest.raises(RmapdError, match=r"cannot import bcc: .*none has no objects") as raised:
        start(none, here, monkeypatch)()
    assert isinstance(raised.value, NoCompiler)
    assert "rmapd compile --btf FILE" in raised.value.hint
    cache = made(tmp_path, monkeypatch, TYPES, sizes={"LEDGER_ROWS": 32})
    monkeypatch.setattr(objects, "compile_in_child", compile_in_child)
    with pytest.raises(RmapdError, match="ledger_rows 32 -> 64"):
        start(cache, here, monkeypatch)()


def test_kernel_of_a_file_reads_nothing_of_this_machine() -> None:
    (one,) = for_types(TYPES, "file", [PROBES], SIZES)
    assert isinstance(one.kernel, Kernel)
    assert (one.kernel.sys_root.exists(), one.kernel.proc_root.exists()) == (False, False)
    assert one.kernel.symbols == frozenset()
