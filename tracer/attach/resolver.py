"""Resolve the attach plan on one kernel, without loading anything.

What a kernel has is found in its BTF, its symbols and what it allows (tracer.kernel.running).
tracer.attach.plan has the meaning of candidates, states and reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from tracer.attach import arguments, plain_loads, relocations, struct_slices
from tracer.attach.plan import (
    ABSENCES,
    NEEDS_PROBE_OBJECT,
    NOTHING_TO_ACCOMPANY,
    NOTRACE,
    AttachMethod,
    AttachPoint,
    Hook,
    HookState,
    Plan,
    PlannedHook,
    ProbeObject,
    ProbeObjectPlan,
    Rebuilt,
    read_probe_object,
)
from tracer.errors import RmapdError
from tracer.kernel.running import Kernel


def make_plan(kernel: Kernel, folders: Sequence[Path], only: frozenset[str] | None = None) -> Plan:
    """Resolve the probe objects in these folders, or only those named.

    Raises RmapdError where there are none, or where a `.toml` cannot be read.
    """
    paths = sorted(path for folder in folders for path in folder.glob("*.toml"))
    declared = {path: read_probe_object(path) for path in paths}
    if only is not None:
        declared = {path: declared[path] for path in paths if path.stem in only}
    if not declared:
        raise RmapdError(f"no probes in {', '.join(map(str, folders))}", hint="reinstall rmapd")
    resolved, usable = list[ProbeObjectPlan](), set[str]()
    types, enums = dict[str, list[str]](), dict[str, list[str]]()
    for path, probe_object in sorted(declared.items(), key=lambda item: bool(item[1].needs)):
        resolved.append(_resolve_probe_object(kernel, path, probe_object, usable))
        if resolved[-1].usable:
            usable.add(path.stem)
            types |= probe_object.types
            enums |= probe_object.enums
    names = _names(hook for probe_object in declared.values() for hook in probe_object.hook)
    slices = struct_slices.make(kernel.types, types, enums)
    return Plan(tuple(resolved), _header(kernel, resolved, names, slices), names)


def make_whole_plan(kernel: Kernel, folders: Sequence[Path]) -> Plan:
    """Resolve the probe objects as far as the kernel's types say, and whether it has plain loads.

    The plan has each probe object all of whose types are there, whatever this kernel lets be
    hooked: its text can be made elsewhere, from the types alone. Its hooks are not to be attached.
    """
    plan = make_plan(kernel, folders)
    complete, types, enums = list[ProbeObjectPlan](), dict[str, list[str]](), dict[str, list[str]]()
    for one in plan.probe_objects:
        if not one.missing and (not one.needs or one.needs in {had.name for had in complete}):
            complete.append(one)
            declared = read_probe_object(one.source.with_name(f"{one.name}.toml"))
            types |= declared.types
            enums |= declared.enums
    slices = struct_slices.make(kernel.types, types, enums)
    header = _header(kernel, plan.probe_objects, plan.names, slices)
    return Plan(tuple(complete), header, plan.names)


def _header(
    kernel: Kernel,
    resolved: Iterable[ProbeObjectPlan],
    names: relocations.Names,
    slices: struct_slices.Slices,
) -> str:
    """Return the C text of all that the probe objects need of this kernel."""
    indexes = "".join(tracepoint_indexes(kernel, hook) for one in resolved for hook in one.hooks)
    machine = f"#define PAGE_SHIFT {kernel.page_shift}\n"
    if kernel.machine.reorders_loads:
        machine += "#define LOADS_ARE_REORDERED 1\n"
    return machine + indexes + names.header + plain_loads.header(kernel) + slices.header


def _names(hooks: Iterable[Hook]) -> relocations.Names:
    """Give numbers to all that the loader may write into the programs of these hooks."""
    args, constants = set[str](), set[str]()
    for hook in hooks:
        args |= {*hook.args, *(hook.rebuilt.args if hook.rebuilt else ())}
        constants |= {*hook.program_constants}
    return relocations.Names(
        constants | {"popped"} | {f"offset_of_{name}" for name in args},
        args | {"returned", "stack"},
    )


def _resolve_probe_object(
    kernel: Kernel, path: Path, probe_object: ProbeObject, usable: set[str]
) -> ProbeObjectPlan:
    """Resolve its hooks. usable: names of the probe objects that have a hook on this kernel."""
    slices = struct_slices.make(kernel.types, probe_object.types, probe_object.enums)
    missing = tuple(slices.missing.values())
    if missing:
        unusable = str(missing[0])
    elif probe_object.needs and probe_object.needs not in usable:
        unusable = NEEDS_PROBE_OBJECT.format(probe_object.needs)
    else:
        unusable = ""
    hooks = [resolve_hook(kernel, path.stem, hook) for hook in probe_object.hook]
    accompanied = any(one.state is HookState.READY and one.hook.alone for one in hooks)

    def checked(one: PlannedHook) -> PlannedHook:
        reason = unusable
        if not reason and not one.hook.alone and not accompanied:
            reason = NOTHING_TO_ACCOMPANY
        ready = one.state is HookState.READY
        return one.failed(HookState.MISSING, reason) if ready and reason else one

    return ProbeObjectPlan(
        path.stem,
        path.with_suffix(".bpf.c"),
        probe_object.needs,
        tuple(map(checked, hooks)),
        missing,
    )


def resolve_hook(kernel: Kernel, probe_object: str, hook: Hook) -> PlannedHook:
    """Find each attach method that this kernel has for a hook, or the reasons why there is none.

    The order is that of the candidates, a rebuilt window comes last; kprobes come first where the
    kernel would leave out runs of fentry programs (Kernel.preempts).
    """
    if hook.programs_need and kernel.types.function(hook.programs_need) is None:
        hook = msgspec.structs.replace(hook, program="", leave="")
    reasons, denied, methods = list[str](), False, list[AttachMethod]()
    for number, candidate in enumerate(hook.candidates):
        how, _, name = candidate.partition(":")
        if how not in _LOOKUPS:
            raise RmapdError(
                f"hook {hook.name} of {probe_object}.toml: unknown candidate {candidate!r}",
                hint=", ".join(_LOOKUPS),
            )
        found = _LOOKUPS[how](kernel, name)
        points: tuple[AttachPoint, ...] = ()
        if found.symbol is not None:
            points, lacking = _points(kernel, how, name, found.symbol, hook)
            found = _Availability(reason=lacking) if lacking else found
        if found.symbol is None:
            reasons.append(found.reason)
            denied |= found.refused
        else:
            instead = _instead(hook, number, name, found.symbol)
            methods += _by_fprobe_too(kernel, AttachMethod(how, found.symbol, points, instead))
    if hook.rebuilt:
        rebuilt, unavailable = _rebuilt_methods(kernel, hook, hook.rebuilt)
        methods += rebuilt
        if not rebuilt:
            reasons += [one.reason for one in unavailable]
            denied |= not hook.candidates and any(one.refused for one in unavailable)
    if kernel.preempts:
        methods.sort(key=lambda method: method.how == "fentry")
    state = HookState.READY if methods else HookState.DENIED if denied else HookState.MISSING
    return PlannedHook(probe_object, hook, state, tuple(methods), "; ".join(dict.fromkeys(reasons)))


def _by_fprobe_too(kernel: Kernel, method: AttachMethod) -> Sequence[AttachMethod]:
    """Return a method, and before it the same by fprobe where that is cheaper.

    It is cheaper for kprobes at entries. A function with a program at its return would pass two
    ftrace_ops, and the graph tracer (docs/KERNELS.md).
    """
    if kernel.fprobe_refused or {point.how for point in method.points} != {"kprobe"}:
        return (method,)
    points = tuple(replace(point, how="kprobe.multi") for point in method.points)
    return replace(method, how="kprobe.multi", points=points), method


def _instead(hook: Hook, number: int, name: str, symbol: str) -> str:
    """Return why a candidate is a substitute; empty where it is none."""
    if number and name != hook.candidates[0].partition(":")[2]:
        return f"instead of {hook.candidates[0]}"
    return f"clone of {name}" if symbol != name else ""


@dataclass(frozen=True)
class _Availability:
    """Whether a kernel has a candidate: its symbol, or the reason why not.

    refused: it is there, and the kernel does not allow it to be hooked.
    """

    symbol: str | None = None
    reason: str = ""
    refused: bool = False


def _raw_tracepoint(kernel: Kernel, name: str) -> _Availability:
    if kernel.types.raw_tracepoint(name) is None:
        return _Availability(reason=ABSENCES["raw_tp"].format(name))
    return _Availability(name)


def _iterator(kernel: Kernel, name: str) -> _Availability:
    if kernel.types.function(f"bpf_iter_{name}") is None:
        return _Availability(reason=ABSENCES["iter"].format(name))
    return _Availability(name)


def _fentry(kernel: Kernel, name: str) -> _Availability:
    if kernel.types.function(name) is None:
        return _Availability(reason=ABSENCES["fentry"].format(name))
    if kernel.traceable is not None and name not in kernel.traceable:
        return _Availability(reason=NOTRACE.format(name), refused=True)
    if kernel.fentry_refused:
        return _Availability(reason=kernel.fentry_refused, refused=True)
    return _Availability(name)


def _kprobe(kernel: Kernel, name: str) -> _Availability:
    clones = kernel.clones(name)
    if not clones:
        return _Availability(reason=ABSENCES["kprobe"].format(name))
    usable = [symbol for symbol in clones if kernel.traceable is None or symbol in kernel.traceable]
    if not usable:
        return _Availability(reason=NOTRACE.format(name), refused=True)
    if kernel.kprobe_refused:
        return _Availability(reason=kernel.kprobe_refused, refused=True)
    return _Availability(usable[0])


_LOOKUPS: dict[str, Callable[[Kernel, str], _Availability]] = {
    "raw_tp": _raw_tracepoint,
    "iter": _iterator,
    "fentry": _fentry,
    "kprobe": _kprobe,
    "run": lambda _kernel, name: _Availability(name),
}


def _points(
    kernel: Kernel, how: str, name: str, symbol: str, hook: Hook
) -> tuple[tuple[AttachPoint, ...], str]:
    """Return (the points of a candidate, why it cannot be used: an argument that is not there)."""
    if how == "raw_tp":
        return (AttachPoint(hook.at_entry, how, symbol),), _lacking_types(kernel, name, hook)
    if how == "iter":
        return (AttachPoint(f"bpf_iter__{hook.name}", how, symbol),), ""
    if how == "run":
        return (AttachPoint(hook.name, how, symbol),), ""
    return _function_points(kernel, how, name, symbol, hook, hook.args)


def _function_points(
    kernel: Kernel, how: str, name: str, symbol: str, hook: Hook, args: dict[str, str]
) -> tuple[tuple[AttachPoint, ...], str]:
    """Return (the points at a function's entry and return, why it cannot be used)."""
    found = arguments.find(kernel.types, name, args)
    declaration = f"{name}({found.parameters})"
    if found.lacking:
        return (), f"{declaration} has no {', '.join(found.lacking)}"
    if symbol != name and args:
        return (), f"{symbol} is a clone: its arguments may be others than those of {name}"
    if how == "fentry":
        here = *arguments.at_fentry(found), hook.program_constants
        programs = (hook.at_entry, "fentry", here), (hook.at_return, "fexit", here)
    else:
        registers = kernel.machine.registers
        unreachable = arguments.unreachable_from_kprobe(found, registers)
        if unreachable:
            return (), f"{declaration} has {', '.join(unreachable)} behind a pointer on the stack"
        here = *arguments.at_kprobe(found, registers), hook.program_constants
        back = *arguments.at_kretprobe(found, registers), hook.program_constants
        entry = hook.at_entry or hook.before
        programs = (entry, "kprobe", here), (hook.at_return, "kretprobe", back)
    return tuple(AttachPoint(one, by, symbol, *where) for one, by, where in programs if one), ""


def _rebuilt_methods(
    kernel: Kernel, hook: Hook, rebuilt: Rebuilt
) -> tuple[list[AttachMethod], list[_Availability]]:
    """Return (methods that rebuild a window from surrounding calls, what prevents others).

    The beginning and each end must be there by their own names: a clone may stand for some of the
    calls only.
    """
    methods, unavailable = list[AttachMethod](), list[_Availability]()
    flags = f"{hook.program_constants.get('flags', '0')} | WINDOW_REBUILT"
    begin = msgspec.structs.replace(hook, constants=hook.program_constants | {"flags": flags})
    names = [rebuilt.begin, *rebuilt.ends]
    for how in ("fentry", "kprobe"):
        found = [_LOOKUPS[how](kernel, name) for name in names]
        unavailable += [one for one in found if one.symbol is None]
        if [one.symbol for one in found] != names:
            continue
        points, lacking = _function_points(
            kernel, how, rebuilt.begin, rebuilt.begin, begin, rebuilt.args
        )
        if lacking:
            unavailable.append(_Availability(reason=lacking))
            continue
        at_end = hook.leave or "window_end"
        ends = (
            AttachPoint(at_end, how, name, {}, {}, hook.program_constants) for name in rebuilt.ends
        )
        instead = f"rebuilt: from {rebuilt.begin} to {' or '.join(rebuilt.ends)}"
        made = AttachMethod(how, rebuilt.begin, (*points[:1], *ends), instead)
        methods += _by_fprobe_too(kernel, made)
    return methods, unavailable


def _index_of(prototype: list[str], wanted: str) -> int | None:
    """Find an argument of a raw tracepoint by its type.

    wanted: `type`, or `type#n` for the n-th of that type (from 1), or some in order of preference
    with `|` between them.
    """
    for text in wanted.split("|"):
        kind, _, nth = text.strip().partition("#")
        indexes = [i for i, c_type in enumerate(prototype) if c_type == kind]
        order = int(nth or 1) - 1
        if order < len(indexes):
            return indexes[order]
    return None


def _lacking_types(kernel: Kernel, name: str, hook: Hook) -> str:
    """Return which arguments a raw tracepoint lacks; empty where it has all."""
    prototype = kernel.types.raw_tracepoint(name) or []
    lacking = [
        f"{arg} ({kind})" for arg, kind in hook.args.items() if _index_of(prototype, kind) is None
    ]
    return f"{name}({', '.join(prototype)}) has no {', '.join(lacking)}" if lacking else ""


def tracepoint_indexes(kernel: Kernel, planned: PlannedHook) -> str:
    """Return the C definitions `ARG_<hook>_<arg>` of a hook on a raw tracepoint.

    Each is the index of an argument on this kernel, 0 where the hook is missing. Empty for other
    hooks.
    """
    candidates = planned.hook.candidates
    if not candidates or not candidates[0].startswith("raw_tp:"):
        return ""
    found = kernel.types.raw_tracepoint(planned.symbol) if planned.how == "raw_tp" else None
    return "".join(
        f"#define ARG_{planned.hook.name}_{arg} {_index_of(found or [], kind) or 0}\n"
        for arg, kind in planned.hook.args.items()
    )
