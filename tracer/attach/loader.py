"""Compile, load and attach the probe objects of a plan.

load() does it all. It compiles the usable probe objects as one translation unit
(tracer.attach.compiler), writes each program's constants and places into its instructions
(tracer.attach.relocations), loads the programs and attaches them. A failure costs what it must and
no more:

- A probe object that does not compile costs its own hooks, and those of probe objects that need
  it. Their state is `missing`. load() raises RmapdError where none compiles.
- A method whose programs the kernel refuses, loading or attaching, is undone, and the hook's next
  method is tried. After the last one the hook is `denied`, with the reason of each.
- Where memory is short (ENOMEM) load() raises Temporary. To go on without the hook would be
  coverage lost by chance, which the next start would have.
"""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tracer.attach import bcc_headers
from tracer.attach.attached import AttachedProbes, AttachedProgram, attach_all, close_all
from tracer.attach.compile_cache import CompileCache
from tracer.attach.compiler import Compiled, compile_text
from tracer.attach.plan import (
    REFUSED_AT,
    AttachPoint,
    HookState,
    Plan,
    PlannedHook,
    ProbeObjectPlan,
)
from tracer.attach.relocations import Names
from tracer.bpf.maps import Map, possible_cpus
from tracer.bpf.programs import Program, Refused, enable_statistics, load_program
from tracer.errors import RmapdError, Temporary, of_os
from tracer.kernel.btf import FUNC, Btf

GENERATED = "kernel.h"
"""The header that is generated for each kernel; probes/include/common.h includes it."""
_AT_ONCE = 4
"""Programs that are verified at the same time, where there are so many CPUs."""
_INCLUDE = re.compile(r'#include "([^"]+)"')


@dataclass(frozen=True)
class BuildEnvironment:
    """What compiling and loading for this kernel takes, besides the plan.

    types: of the kernel. constants: the enumerators of the header that daemon and programs share.
    include: the folder of the headers. sizes: macro -> rows of a map. release: of the kernel.
    cache: of compiled programs, if any.
    """

    types: Btf
    constants: Mapping[str, int]
    include: Path
    sizes: Mapping[str, int]
    release: str
    cache: CompileCache | None = None


def load(plan: Plan, build: BuildEnvironment, *, statistics: bool) -> AttachedProbes:
    """Compile, load and attach a plan; the module's docstring has what a failure costs.

    statistics: have the kernel count run times, where it allows it. Raises RmapdError.
    """
    usable = [probe_object for probe_object in plan.probe_objects if probe_object.usable]
    with tempfile.TemporaryDirectory(prefix="rmapd-") as folder:
        bcc_headers.write(Path(folder), build.release)
        compiled, broken = _compile_usable(plan.header, usable, build, folder)
    programs = LoadedAhead(
        ProgramLoader(compiled.code, plan.names, build),
        (
            point
            for probe_object in usable
            if probe_object.name not in broken
            for hook in probe_object.hooks
            if hook.state is HookState.READY
            for point in hook.methods[0].points
        ),
    )
    attaching = _Attaching(programs, compiled.maps)
    try:
        if statistics:
            with contextlib.suppress(OSError):
                attaching.statistics_fd = enable_statistics()
        for probe_object in plan.probe_objects:
            attaching.attach(probe_object, broken.get(probe_object.name, ""))
    except BaseException:
        attaching.probes().close()
        raise
    finally:
        programs.close()
    return attaching.probes()


@dataclass
class _Attaching:
    """What load() has attached so far."""

    programs: Loads
    maps: dict[str, Map]
    hooks: list[PlannedHook] = field(default_factory=list)
    points: dict[str, list[AttachedProgram]] = field(default_factory=dict)
    statistics_fd: int = -1

    def attach(self, probe_object: ProbeObjectPlan, compile_error: str) -> None:
        """Attach the hooks of a probe object. compile_error: why it does not compile, if so."""
        for hook in probe_object.hooks:
            if hook.state is HookState.READY and compile_error:
                reason = f"{probe_object.name}.bpf.c does not compile: {compile_error}"
                self.hooks.append(hook.failed(HookState.MISSING, reason, tried=True))
            elif hook.state is HookState.READY:
                attached, points = attach_hook(self.programs, hook)
                self.hooks.append(attached)
                if points:
                    self.points[hook.hook.name] = points
            else:
                self.hooks.append(hook)

    def probes(self) -> AttachedProbes:
        """Return it as the owner of maps, programs and links."""
        return AttachedProbes(self.hooks, self.maps, self.points, self.statistics_fd)


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


def compile_probe_objects(
    header: str, probe_objects: Sequence[ProbeObjectPlan], build: BuildEnvironment, headers: str
) -> Compiled:
    """Compile some probe objects as one translation unit.

    header: Plan.header. headers: the folder that bcc_headers.write() filled. Raises RmapdError with
    the compiler's first error.
    """
    flags = [f"-D{name}={value}" for name, value in build.sizes.items()] + ["-w"]
    points = (
        point
        for probe_object in probe_objects
        for hook in probe_object.hooks
        for method in hook.methods
        for point in method.points
    )
    try:
        return compile_text(
            source(header, probe_objects, build.include),
            flags,
            map(_function, points),
            headers,
            possible_cpus(),
            build.cache,
        )
    except RmapdError as error:
        names = ", ".join(f"{probe_object.name}.bpf.c" for probe_object in probe_objects)
        raise type(error)(
            error.what.replace("the probes", names), why=error.why, hint=error.hint
        ) from error


def _function(point: AttachPoint) -> str:
    """Return the name of a program's C function. BCC recognises iterators by their prefix."""
    return point.program if point.program.startswith("bpf_iter__") else f"rmapd_{point.program}"


def _compile_usable(
    header: str, usable: list[ProbeObjectPlan], build: BuildEnvironment, headers: str
) -> tuple[Compiled, dict[str, str]]:
    """Return (what compiles, probe object that does not -> why)."""
    try:
        return compile_probe_objects(header, usable, build, headers), {}
    except Temporary:
        raise
    except RmapdError:
        broken = _broken(header, usable, build, headers)
        left = [probe_object for probe_object in usable if probe_object.name not in broken]
        if not left:
            raise
        return compile_probe_objects(header, left, build, headers), broken


def _broken(
    header: str, usable: Iterable[ProbeObjectPlan], build: BuildEnvironment, headers: str
) -> dict[str, str]:
    """Compile each probe object with what it needs, and return those that fail -> why."""
    every, broken = {one.name: one for one in usable}, dict[str, str]()
    for probe_object in every.values():
        if probe_object.needs in broken:
            broken[probe_object.name] = f"needs {probe_object.needs}.bpf.c"
            continue
        needed = [every[probe_object.needs]] if probe_object.needs in every else []
        try:
            alone = compile_probe_objects(header, [*needed, probe_object], build, headers)
        except Temporary:
            raise
        except RmapdError as error:
            broken[probe_object.name] = error.why
            continue
        for table in alone.maps.values():
            table.close()
    return broken


class Loads(Protocol):
    """What loads the program of an attach point."""

    def load(self, point: AttachPoint) -> Program:
        """Load it. Raises Refused, and OSError where there is no memory."""
        ...


@dataclass(frozen=True)
class ProgramLoader:
    """Loads programs of the compiled translation unit. code: instructions by C function."""

    code: Mapping[str, bytes]
    names: Names
    build: BuildEnvironment

    def load(self, point: AttachPoint) -> Program:
        """Load the program of an attach point, as its constants and places make it.

        Raises Refused with the verifier's reason, OSError where there is no memory.
        """
        function = _function(point)
        if function not in self.code:
            raise Refused(f"no program {function} was compiled")
        constants = point.constant_values(self.build.constants)
        code = self.names.patch(self.code[function], constants, point.places)
        target = f"bpf_iter_{point.symbol}" if point.how == "iter" else point.symbol
        by_btf = point.how in ("iter", "fentry", "fexit")
        function_id = (self.build.types.find(target, FUNC) or 0) if by_btf else 0
        return load_program(point.program, point.how, code, function_id)


class LoadedAhead:
    """Loads programs in some threads at once: to verify them takes most of a start from the cache.

    What is not asked for by load() is unloaded by close().
    """

    def __init__(self, programs: Loads, points: Iterable[AttachPoint]) -> None:
        self._programs = programs
        self._threads = ThreadPoolExecutor(_AT_ONCE, "rmapd-load")
        self._ahead = {id(point): self._threads.submit(programs.load, point) for point in points}

    def load(self, point: AttachPoint) -> Program:
        """Return the program of a point, as ProgramLoader.load() does."""
        ahead = self._ahead.pop(id(point), None)
        return ahead.result() if ahead else self._programs.load(point)

    def close(self) -> None:
        """Unload the programs that nobody took."""
        self._threads.shutdown(cancel_futures=True)
        for one in self._ahead.values():
            if not one.cancelled() and not one.exception():
                one.result().close()
        self._ahead = {}


def attach_hook(programs: Loads, hook: PlannedHook) -> tuple[PlannedHook, list[AttachedProgram]]:
    """Attach a hook by the first of its methods all points of which load and attach.

    Returns the hook as it is then, and its programs: none where it is denied. Raises Temporary
    where memory is short.
    """
    reasons = []
    for number, method in enumerate(hook.methods):
        points: list[AttachedProgram] = []
        step = "load"
        try:
            for point in method.points:
                points.append(AttachedProgram(programs.load(point), point.how, point.symbol))
            step = "attach"
            attach_all(points)
        except (OSError, Refused) as error:
            close_all(points)
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise of_os(
                    error, f"cannot {step} the programs of {hook.hook.name}", "the same again later"
                ) from error
            reason = error.strerror if isinstance(error, OSError) else str(error)
            reasons.append(REFUSED_AT.format(method.how, method.symbol, step, reason))
            continue
        return hook.attached(number), points
    return hook.failed(HookState.DENIED, "; ".join(reasons), tried=True), []
