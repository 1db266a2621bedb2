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
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tracer.attach import bcc_headers
from tracer.attach.attached import AttachedProbes, AttachedProgram, attach_all, close_all
from tracer.attach.compile_cache import CompileCache
from tracer.attach.compiler import Compiled, NoCompiler, compile_text
from tracer.attach.objects import Objects
from tracer.attach.plan import (
    REFUSED_AT,
    AttachPoint,
    HookState,
    Plan,
    PlannedHook,
    ProbeObjectPlan,
)
from tracer.attach.relocations import Names
from tracer.attach.translation_unit import c_function, flags, source
from tracer.bpf.maps import Map, possible_cpus
from tracer.bpf.programs import SHORT, Program, Refused, enable_statistics, load_program
from tracer.errors import RmapdError, Temporary, of_os
from tracer.kernel.btf import FUNC
from tracer.kernel.running import Kernel

log = logging.getLogger("rmapd")

_AT_ONCE = 4
"""Programs that are verified at the same time, where there are so many CPUs."""


@dataclass(frozen=True)
class BuildEnvironment:
    """What compiling and loading for this kernel takes, besides the plan.

    constants: the enumerators of the header that daemon and programs share. include: the folder of
    the headers. sizes: macro -> rows of a map. cache: of compiled programs, if any. objects: what
    `rmapd compile` may have put into it.
    """

    kernel: Kernel
    constants: Mapping[str, int]
    include: Path
    sizes: Mapping[str, int]
    cache: CompileCache | None = None
    objects: Objects | None = None


def load(plan: Plan, build: BuildEnvironment, *, statistics: bool) -> AttachedProbes:
    """Compile, load and attach a plan; the module's docstring has what a failure costs.

    statistics: have the kernel count run times, where it allows it. Raises RmapdError.
    """
    usable = [probe_object for probe_object in plan.probe_objects if probe_object.usable]
    compiled, names, broken = _made_elsewhere(usable, build), plan.names, dict[str, str]()
    if compiled and build.objects:
        names = build.objects.plan.names
    else:
        with tempfile.TemporaryDirectory(prefix="rmapd-") as folder:
            bcc_headers.write(Path(folder), build.kernel)
            compiled, broken = _compile_usable(plan.header, usable, build, folder)
    programs = LoadedAhead(
        ProgramLoader(compiled.code, names, build),
        (
            point
            for probe_object in usable
            if probe_object.name not in broken
            for hook in probe_object.hooks
            if hook.state is HookState.READY
            for point in hook.methods[0].points
        ),
    )
    attaching = _Attaching(programs, compiled.maps, compiled.origin)
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
    origin: str
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
        return AttachedProbes(
            self.hooks, self.maps, self.points, self.statistics_fd, origin=self.origin
        )


def _made_elsewhere(usable: Sequence[ProbeObjectPlan], build: BuildEnvironment) -> Compiled | None:
    """Return what `rmapd compile` made for this kernel; None where there is nothing that fits."""
    if not build.objects or not build.cache:
        return None
    try:
        return build.objects.find(build.cache, usable)
    except OSError as error:
        if error.errno in SHORT:
            raise of_os(error, "cannot load the objects", "the same again later") from error
        log.info("the objects in %s do not load: %s", build.cache.folder, error)
        return None


def compile_probe_objects(
    header: str, probe_objects: Sequence[ProbeObjectPlan], build: BuildEnvironment, headers: str
) -> Compiled:
    """Compile some probe objects as one translation unit.

    header: Plan.header. headers: the folder that bcc_headers.write() filled. Raises RmapdError with
    the compiler's first error.
    """
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
            flags(build.sizes),
            (c_function(point.program) for point in points),
            headers,
            possible_cpus(),
            build.cache,
        )
    except RmapdError as error:
        names = ", ".join(f"{probe_object.name}.bpf.c" for probe_object in probe_objects)
        raise type(error)(
            error.what.replace("the probes", names), why=error.why, hint=error.hint
        ) from error


def _compile_usable(
    header: str, usable: list[ProbeObjectPlan], build: BuildEnvironment, headers: str
) -> tuple[Compiled, dict[str, str]]:
    """Return (what compiles, probe object that does not -> why)."""
    try:
        return compile_probe_objects(header, usable, build, headers), {}
    except NoCompiler as error:
        raise _without_compiler(error, build) from error
    except Temporary:
        raise
    except RmapdError:
        broken = _broken(header, usable, build, headers)
        left = [probe_object for probe_object in usable if probe_object.name not in broken]
        if not left:
            raise
        return compile_probe_objects(header, left, build, headers), broken


def _without_compiler(error: NoCompiler, build: BuildEnvironment) -> RmapdError:
    """Return the error with what there is instead of a compiler, and why it is not enough."""
    if not build.objects or not build.cache:
        return error
    folder = build.cache.folder
    misfits = list(build.objects.misfits(build.cache)) or [f"{folder} has no objects"]
    hint = (
        f"{error.hint}; or, where bcc is, rmapd compile --btf FILE with this host's"
        f" /sys/kernel/btf/vmlinux, and the result in {folder}"
    )
    return NoCompiler(error.what, why="; ".join([error.why, *misfits]), hint=hint)


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
        function = c_function(point.program)
        if function not in self.code:
            raise Refused(f"no program {function} was compiled")
        constants = point.constant_values(self.build.constants)
        code = self.names.patch(self.code[function], constants, point.places)
        target = f"bpf_iter_{point.symbol}" if point.how == "iter" else point.symbol
        by_btf = point.how in ("iter", "fentry", "fexit")
        function_id = (self.build.kernel.types.find(target, FUNC) or 0) if by_btf else 0
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
    where memory or descriptors are short.
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
            if isinstance(error, OSError) and error.errno in SHORT:
                raise of_os(
                    error, f"cannot {step} the programs of {hook.hook.name}", "the same again later"
                ) from error
            reason = error.strerror if isinstance(error, OSError) else str(error)
            reasons.append(REFUSED_AT.format(method.how, method.symbol, step, reason))
            continue
        return hook.attached(number), points
    return hook.failed(HookState.DENIED, "; ".join(reasons), tried=True), []
