"""Load and attach. What the compiler gave goes in; maps, programs and links by file descriptor come out (tracer.attach.attached)."""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracer.attach import bcc_headers
from tracer.attach.attached import AttachedProbes, AttachedProgram, close_all, fasten
from tracer.attach.compile_cache import Cache
from tracer.attach.compiler import Compiled, compile_text
from tracer.attach.plan import AttachPoint, Plan, Planned, ProbeObjectPlan, State
from tracer.attach.relocations import Names
from tracer.bpf.maps import possible_cpus
from tracer.bpf.programs import Program, Refused, enable_statistics, load_program
from tracer.errors import RmapdError, Temporary, of_os
from tracer.kernel.btf import FUNC, Btf

GENERATED = "kernel.h"
"""The header that is generated for each kernel; probes/include/common.h includes it."""
_INCLUDE = re.compile(r'#include "([^"]+)"')


@dataclass(frozen=True)
class Kit:
    """What a program needs to be made for this kernel: its types, shared.h's constants, the folder of headers, the sizes of the maps.
    cache: where what is compiled is kept."""

    types: Btf
    constants: Mapping[str, int]
    include: Path
    sizes: Mapping[str, int]
    release: str
    cache: Cache | None = None


def load(plan: Plan, kit: Kit, *, statistics: bool) -> AttachedProbes:
    """Compile all stems at once and attach what resolved. A stem that does not compile costs its hooks, and those of stems that need it."""
    loaded = AttachedProbes()
    usable = [
        probe_object
        for probe_object in plan.probe_objects
        if any(hook.state is State.READY for hook in probe_object.hooks)
    ]
    with tempfile.TemporaryDirectory(prefix="rmapd-") as folder:
        bcc_headers.write(Path(folder), kit.release)
        try:
            compiled = _compile(plan.header, usable, kit, folder)
        except Temporary:
            raise
        except RmapdError:
            loaded.broken = _broken_probe_objects(plan.header, usable, kit, folder)
            usable = [
                probe_object for probe_object in usable if probe_object.name not in loaded.broken
            ]
            if not usable:
                raise
            compiled = _compile(plan.header, usable, kit, folder)
    loaded.maps = compiled.maps
    try:
        _attach(compiled.code, plan, kit, loaded, statistics=statistics)
    except BaseException:
        loaded.close()
        raise
    return loaded


def source(header: str, probe_objects: Sequence[ProbeObjectPlan], include: Path) -> str:
    """Return one translation unit: the probe objects, with each header in place of its `#include`.

    BCC rewrites map accesses in its main file only, so headers cannot be left to the compiler.

    header: the text of kernel.h, generated from this kernel's BTF (tracer.attach.struct_slices).
    include: the folder of the other headers.
    RmapdError where a header cannot be read.
    """
    known = {GENERATED: header}
    return "\n".join(
        _expanded(
            probe_object.source.name,
            probe_object.source.read_text(encoding="utf-8"),
            include,
            known,
        )
        for probe_object in probe_objects
    )


def _expanded(name: str, text: str, include: Path, known: dict[str, str]) -> str:
    """Return a source file with its `#include "..."` lines expanded, each header once.

    known: headers that are in memory; a header that has been used is empty.
    """
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(text.splitlines(), 1):
        found = _INCLUDE.match(line)
        if not found:
            lines.append(line)
            continue
        wanted = found[1]
        inner = known.get(wanted)
        if inner is None:
            try:
                inner = (include / wanted).read_text(encoding="utf-8")
            except OSError as error:
                raise RmapdError(
                    f"cannot read {wanted}, which {name} includes",
                    why=str(error),
                    hint="reinstall rmapd",
                ) from error
        known[wanted] = ""
        if inner:
            lines += [_expanded(wanted, inner, include, known), f'#line {number + 1} "{name}"']
        else:
            lines.append("")
    return "\n".join(lines)


def _compile(
    header: str, probe_objects: Sequence[ProbeObjectPlan], kit: Kit, headers: str
) -> Compiled:
    flags = [f"-D{name}={value}" for name, value in kit.sizes.items()] + ["-w"]
    points = (
        point
        for probe_object in probe_objects
        for hook in probe_object.hooks
        for way in hook.ways
        for point in way.points
    )
    try:
        return compile_text(
            source(header, probe_objects, kit.include),
            flags,
            map(_function, points),
            headers,
            possible_cpus(),
            kit.cache,
        )
    except RmapdError as error:
        names = ", ".join(f"{probe_object.name}.bpf.c" for probe_object in probe_objects)
        raise type(error)(
            error.what.replace("the probes", names), why=error.why, hint=error.hint
        ) from error


def _function(point: AttachPoint) -> str:
    """The name of the C function. BCC recognises iterators by their prefix."""
    return point.program if point.program.startswith("bpf_iter__") else f"rmapd_{point.program}"


def _broken_probe_objects(
    header: str, probe_objects: Sequence[ProbeObjectPlan], kit: Kit, headers: str
) -> dict[str, str]:
    broken: dict[str, str] = {}
    for probe_object in probe_objects:
        needed = [other for other in probe_objects if other.name == probe_object.needs]
        if probe_object.needs in broken:
            broken[probe_object.name] = f"needs {probe_object.needs}.bpf.c"
            continue
        try:
            alone = _compile(header, [*needed, probe_object], kit, headers)
        except Temporary:
            raise
        except RmapdError as error:
            broken[probe_object.name] = error.why
            continue
        for table in alone.maps.values():
            table.close()
    return broken


def _attach(
    code: Mapping[str, bytes], plan: Plan, kit: Kit, loaded: AttachedProbes, *, statistics: bool
) -> None:
    if statistics:
        with contextlib.suppress(OSError):
            loaded.statistics_fd = enable_statistics()
    maker = _Maker(code, plan.names, kit)
    for probe_object in plan.probe_objects:
        for hook in probe_object.hooks:
            if hook.state is State.READY and probe_object.name in loaded.broken:
                reason = f"{probe_object.name}.bpf.c does not compile: {loaded.broken[probe_object.name]}"
                loaded.hooks.append(hook.failed(State.MISSING, reason, tried=True))
            elif hook.state is State.READY:
                loaded.hooks.append(_attach_hook(maker, hook, loaded))
            else:
                loaded.hooks.append(hook)


@dataclass(frozen=True)
class _Maker:
    """Makes programs out of the compiled module."""

    code: Mapping[str, bytes]
    names: Names
    kit: Kit

    def program(self, point: AttachPoint) -> Program:
        if _function(point) not in self.code:
            raise Refused(f"no program {_function(point)} was compiled")
        code = self.names.patch(
            self.code[_function(point)], point.numbers(self.kit.constants), point.places
        )
        target = f"bpf_iter_{point.symbol}" if point.how == "iter" else point.symbol
        function_id = (
            self.kit.types.find(target, FUNC) or 0
            if point.how in ("iter", "fentry", "fexit")
            else 0
        )
        return load_program(point.program, point.how, code, function_id)


def _attach_hook(maker: _Maker, hook: Planned, loaded: AttachedProbes) -> Planned:
    """The first way whose points all attach."""
    reasons = []
    for number, way in enumerate(hook.ways):
        points: list[AttachedProgram] = []
        step = "load"
        try:
            points.extend(
                AttachedProgram(maker.program(point), point.how, point.symbol)
                for point in way.points
            )
            step = "attach"
            fasten(points)
        except (OSError, Refused) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            reasons.append(f"{way.how} {way.symbol} refused at {step}: {why}")
            close_all(points)
            if (
                isinstance(error, OSError) and error.errno == errno.ENOMEM
            ):  # to go on without it would be a coverage lost by chance
                raise of_os(
                    error, f"cannot {step} the programs of {hook.hook.name}", "the same again later"
                ) from error
            continue
        loaded.points[hook.hook.name] = points
        return hook.attached(number)
    return hook.failed(State.DENIED, "; ".join(reasons), tried=True)
