"""The attach plan: which hook gets which of its candidates on this kernel, with the reason for each miss.

A stem is a pair `NAME.bpf.c` and `NAME.toml`. A candidate is `raw_tp:NAME`, `fentry:FUNCTION`, `kprobe:FUNCTION`, `iter:TARGET` or
`run:` (no attachment: run on demand). A hook on a function has a program at its entry, at its return (fexit, kretprobe), or both; all of
them attach, or the next candidate is tried. No kernel version is ever tested.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from tracer.attach import arguments as signature
from tracer.attach import relocations, struct_slices
from tracer.errors import RmapdError
from tracer.kernel.running import Kernel


class State(enum.StrEnum):
    """Where a hook stands. `READY` becomes ATTACHED or SUBSTITUTED when the kernel took it, DENIED when it refused. RESTING: it was
    attached, and the governor has taken it off for now. DETACHED: somebody else has."""

    READY = "ready"
    ATTACHED = "attached"
    SUBSTITUTED = "substituted"
    MISSING = "missing"
    DENIED = "denied"
    RESTING = "resting"
    DETACHED = "detached"


class Rebuilt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A window made from what surrounds its function: it begins at the entry of one function and ends at the entry of the next of some."""

    begin: str
    ends: list[str]
    args: dict[str, str] = {}


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One hook as its `.toml` states it.

    `args`: for a raw tracepoint by type (`bool#1` is the first bool), for a function by parameter (tracer.attach.arguments). `window`: entry and
    return are those of a window. `program` and `leave` name the programs at entry and return, `before` what a kretprobe needs at entry.
    `constants`: names or sums (`A | B`) of enumerators of books.h. `alone = false`: of no use where none of the stem's functions is hooked.
    """

    name: str
    candidates: list[str]
    note: str
    args: dict[str, str] = {}
    constants: dict[str, str] = {}
    window: str = ""
    program: str = ""
    leave: str = ""
    before: str = ""
    alone: bool = True
    rebuilt: Rebuilt | None = None

    @property
    def at_entry(self) -> str:
        return self.program or ("window_enter" if self.window else "" if self.leave else self.name)

    @property
    def at_return(self) -> str:
        return self.leave or ("window_leave" if self.window else "")

    @property
    def numbers(self) -> dict[str, str]:
        return (
            {"window": f"WINDOW_{self.window}", "returns": "RETURNS_ERRNO"} if self.window else {}
        ) | self.constants


class ProbeObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `.toml`: a title, the members its programs read, the enumerators they need, and its hooks.

    `include`: a header of probes/include that its programs, and those of stems that `needs` it, share.
    """

    title: str
    hook: list[Hook]
    types: dict[str, list[str]] = {}
    enums: dict[str, list[str]] = {}
    include: str = ""
    needs: str = ""


@dataclass(frozen=True)
class AttachPoint:
    """One program at one place. `places` and `offsets` are put into it (tracer.attach.relocations); `constants` are names of books.h."""

    program: str
    how: str
    symbol: str
    places: dict[str, int] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)

    def numbers(self, known: Mapping[str, int]) -> dict[str, int]:
        """What the program's constants are, by name, with books.h's enumerators."""
        words = {
            name: [word.strip() for word in text.split("|")]
            for name, text in self.constants.items()
        }
        return self.offsets | {
            name: sum(int(w, 0) if w[:1].isdigit() else known[w] for w in each)
            for name, each in words.items()
        }


@dataclass(frozen=True)
class AttachMethod:
    """One candidate that this kernel seems to allow: all its points attach, or none stays. `instead`: why it is a substitute."""

    how: str
    symbol: str
    points: tuple[AttachPoint, ...]
    instead: str = ""


@dataclass(frozen=True)
class Planned:
    """A hook resolved (or not) on this kernel; `ways` in order of preference. tried: this kernel could have it, and loading it failed."""

    probe_object: str
    hook: Hook
    state: State
    ways: tuple[AttachMethod, ...] = ()
    reason: str = ""
    taken: int = 0
    tried: bool = False

    @property
    def how(self) -> str:
        return self.ways[self.taken].how if self.ways else ""

    @property
    def symbol(self) -> str:
        return self.ways[self.taken].symbol if self.ways else ""

    @property
    def on(self) -> bool:
        return self.state in (State.ATTACHED, State.SUBSTITUTED)

    def attached(self, way: int) -> Planned:
        instead = self.ways[way].instead
        return replace(
            self, state=State.SUBSTITUTED if instead else State.ATTACHED, reason=instead, taken=way
        )

    def failed(self, state: State, reason: str, *, tried: bool = False) -> Planned:
        return replace(self, state=state, reason=reason, tried=tried)


@dataclass
class ProbeObjectPlan:
    """One stem on this kernel: its source, its hooks, and the members it needs and this kernel lacks."""

    name: str
    source: Path
    include: str = ""
    needs: str = ""
    hooks: list[Planned] = field(default_factory=list)
    missing: list[struct_slices.Missing] = field(default_factory=list)


@dataclass
class Plan:
    """All stems on this kernel, the one header of types and numbers made for them, and the names that programs are patched by."""

    probe_objects: list[ProbeObjectPlan] = field(default_factory=list)
    header: str = ""
    names: relocations.Names = field(default_factory=lambda: relocations.Names((), ()))


def read_probe_object(path: Path) -> ProbeObject:
    """Parse a stem's `.toml`; RmapdError names the file and the key that is wrong."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ProbeObject)
    except (OSError, msgspec.DecodeError) as error:
        raise RmapdError(f"cannot read the attach plan {path}", why=str(error)) from error


def make(kernel: Kernel, folders: Sequence[Path], only: frozenset[str] | None = None) -> Plan:
    """Resolve all stems found in the folders (or only those named) against this kernel."""
    plan, types, enums = Plan(), dict[str, list[str]](), dict[str, list[str]]()
    probe_objects = {
        path: read_probe_object(path)
        for path in sorted(path for folder in folders for path in folder.glob("*.toml"))
    }
    if only is not None:
        probe_objects = {
            path: probe_object for path, probe_object in probe_objects.items() if path.stem in only
        }
    if not probe_objects:
        raise RmapdError(f"no probes in {', '.join(map(str, folders))}", hint="reinstall rmapd")
    usable: set[str] = set()
    for path, probe_object in sorted(probe_objects.items(), key=lambda item: bool(item[1].needs)):
        resolved = _resolve_probe_object(kernel, path, probe_object, usable)
        plan.probe_objects.append(resolved)
        plan.header += "".join(_arguments(kernel, hook) for hook in resolved.hooks)
        if any(hook.state is State.READY for hook in resolved.hooks):
            usable.add(path.stem)
            types |= probe_object.types
            enums |= probe_object.enums
    hooks = [hook for probe_object in probe_objects.values() for hook in probe_object.hook]
    arguments = {
        name
        for hook in hooks
        for name in (*hook.args, *(hook.rebuilt.args if hook.rebuilt else ()))
    }
    constants = {name for hook in hooks for name in hook.numbers}
    plan.names = relocations.Names(
        constants | {"popped"} | {f"offset_of_{name}" for name in arguments},
        arguments | {"returned", "stack"},
    )
    plan.header += plan.names.header + struct_slices.make(kernel.types, types, enums).header
    return plan


def _resolve_probe_object(
    kernel: Kernel, path: Path, probe_object: ProbeObject, usable: set[str]
) -> ProbeObjectPlan:
    lacking = list(
        struct_slices.make(kernel.types, probe_object.types, probe_object.enums).missing.values()
    )
    resolved = ProbeObjectPlan(
        path.stem,
        path.with_suffix(".bpf.c"),
        probe_object.include,
        probe_object.needs,
        missing=lacking,
    )
    planned = [resolve(kernel, path.stem, hook) for hook in probe_object.hook]
    why = (
        str(lacking[0])
        if lacking
        else f"needs the stem {probe_object.needs}"
        if probe_object.needs and probe_object.needs not in usable
        else ""
    )
    helped = any(p.state is State.READY and p.hook.alone for p in planned)
    for hook in planned:
        reason = why or (
            "of no use: none of the functions it goes with can be hooked"
            if not (hook.hook.alone or helped)
            else ""
        )
        resolved.hooks.append(
            hook.failed(State.MISSING, reason) if hook.state is State.READY and reason else hook
        )
    return resolved


def resolve(kernel: Kernel, probe_object: str, hook: Hook) -> Planned:
    """Every candidate that this kernel has, in order (kprobes first where fentry programs are preempted); the reasons when it has none."""
    reasons, denied, ways = [], False, []
    for index, candidate in enumerate(hook.candidates):
        how, _, name = candidate.partition(":")
        if how not in _TRIALS:
            raise RmapdError(
                f"hook {hook.name} of {probe_object}.toml: unknown candidate {candidate!r}",
                hint=", ".join(_TRIALS),
            )
        trial = _TRIALS[how](kernel, name)
        points: tuple[AttachPoint, ...] = ()
        if trial.symbol is not None:
            points, wrong = _points(kernel, how, name, trial.symbol, hook)
            trial = _Trial(reason=wrong) if wrong else trial
        if trial.symbol is not None:
            other_name = index and name != hook.candidates[0].partition(":")[2]
            note = (
                f"instead of {hook.candidates[0]}"
                if other_name
                else f"clone of {name}"
                if trial.symbol != name
                else ""
            )
            ways.append(AttachMethod(how, trial.symbol, points, note))
        else:
            reasons.append(trial.reason)
            denied |= trial.refused
    if hook.rebuilt:
        rebuilt, refused = _rebuilt(kernel, hook, hook.rebuilt)
        ways += rebuilt
        reasons += [] if rebuilt else [trial.reason for trial in refused]
        denied |= not rebuilt and not hook.candidates and any(trial.refused for trial in refused)
    if kernel.preempts:
        ways.sort(key=lambda way: way.how == "fentry")
    reason = "; ".join(dict.fromkeys(reasons))
    return Planned(
        probe_object,
        hook,
        State.READY if ways else State.DENIED if denied else State.MISSING,
        tuple(ways),
        reason,
    )


@dataclass(frozen=True)
class _Trial:
    """One candidate on this kernel: a symbol to attach to, or the reason why not; refused: there, but not allowed."""

    symbol: str | None = None
    reason: str = ""
    refused: bool = False


def _raw_tracepoint(kernel: Kernel, name: str) -> _Trial:
    return (
        _Trial(name)
        if kernel.types.raw_tracepoint(name) is not None
        else _Trial(reason=f"no raw tracepoint {name} in this kernel")
    )


def _iterator(kernel: Kernel, name: str) -> _Trial:
    known = kernel.types.function(f"bpf_iter_{name}") is not None
    return _Trial(name) if known else _Trial(reason=f"no BPF iterator over {name} in this kernel")


def _trampoline(kernel: Kernel, name: str) -> _Trial:
    if kernel.types.function(name) is None:
        return _Trial(reason=f"no function {name} in this kernel's BTF")
    if kernel.traceable is not None and name not in kernel.traceable:
        return _Trial(reason=f"{name} is notrace", refused=True)
    return (
        _Trial(reason=kernel.fentry_refused, refused=True)
        if kernel.fentry_refused
        else _Trial(name)
    )


def _breakpoint(kernel: Kernel, name: str) -> _Trial:
    clones = kernel.clones(name)
    usable = [symbol for symbol in clones if kernel.traceable is None or symbol in kernel.traceable]
    if not usable:
        return _Trial(
            reason=f"{name} is notrace" if clones else f"no symbol {name} in this kernel",
            refused=bool(clones),
        )
    return (
        _Trial(reason=kernel.kprobe_refused, refused=True)
        if kernel.kprobe_refused
        else _Trial(usable[0])
    )


_TRIALS: dict[str, Callable[[Kernel, str], _Trial]] = {
    "raw_tp": _raw_tracepoint,
    "iter": _iterator,
    "fentry": _trampoline,
    "kprobe": _breakpoint,
    "run": lambda _kernel, name: _Trial(name),
}


def _points(
    kernel: Kernel, how: str, name: str, symbol: str, hook: Hook
) -> tuple[tuple[AttachPoint, ...], str]:
    """What a candidate attaches, or why it cannot: an argument that this kernel's function does not have."""
    if how == "raw_tp":
        return (AttachPoint(hook.at_entry, how, symbol),), _wrong_types(kernel, name, hook)
    if how not in ("fentry", "kprobe"):
        return (
            AttachPoint(f"bpf_iter__{symbol}" if how == "iter" else hook.name, how, symbol),
        ), ""
    return _on_function(kernel, how, name, symbol, hook, hook.args)


def _on_function(
    kernel: Kernel, how: str, name: str, symbol: str, hook: Hook, args: dict[str, str]
) -> tuple[tuple[AttachPoint, ...], str]:
    found = signature.read(kernel.types, name, args)
    if found.lacking:
        return (), f"{name}({found.parameters}) has no {', '.join(found.lacking)}"
    if symbol != name and args:
        return (), f"{symbol} is a clone: its arguments may be others than those of {name}"
    if how == "kprobe" and signature.too_far(found):
        return (
            (),
            f"{name}({found.parameters}) has {', '.join(signature.too_far(found))} behind a pointer on the stack",
        )
    places, offsets = (signature.in_trampoline if how == "fentry" else signature.in_registers)(
        found
    )
    entry, leave, before = hook.at_entry, hook.at_return, hook.before
    points = []
    if how == "fentry":
        points += (
            [AttachPoint(entry, "fentry", symbol, places, offsets, hook.numbers)] if entry else []
        )
        points += (
            [AttachPoint(leave, "fexit", symbol, places, offsets, hook.numbers)] if leave else []
        )
    else:
        first = entry or before
        points += (
            [AttachPoint(first, "kprobe", symbol, places, offsets, hook.numbers)] if first else []
        )
        points += (
            [AttachPoint(leave, "kretprobe", symbol, *signature.at_return(found), hook.numbers)]
            if leave
            else []
        )
    return tuple(points), ""


def _rebuilt(kernel: Kernel, hook: Hook, made: Rebuilt) -> tuple[list[AttachMethod], list[_Trial]]:
    """The ways to make a window from what surrounds it, and what was in the way of others; every end must be there."""
    ways, misses = [], []
    for how in ("fentry", "kprobe"):
        trials = [_TRIALS[how](kernel, name) for name in (made.begin, *made.ends)]
        misses += [trial for trial in trials if trial.symbol is None]
        begin = msgspec.structs.replace(
            hook,
            constants=hook.numbers
            | {"flags": f"{hook.numbers.get('flags', '0')} | WINDOW_REBUILT"},
        )
        if [trial.symbol for trial in trials] != [
            made.begin,
            *made.ends,
        ]:  # a clone may stand for some of the calls only
            continue
        points, wrong = _on_function(kernel, how, made.begin, made.begin, begin, made.args)
        if wrong:
            misses.append(_Trial(reason=wrong))
            continue
        ends = tuple(
            AttachPoint(hook.leave or "window_end", how, name, {}, {}, hook.numbers)
            for name in made.ends
        )
        ways.append(
            AttachMethod(
                how,
                made.begin,
                points[:1] + ends,
                f"rebuilt: from {made.begin} to {' or '.join(made.ends)}",
            )
        )
    return ways, misses


def _index_of(prototype: list[str], wanted: str) -> int | None:
    """`type` or `type#n` (n-th of that type, from 1), or several of them in order of preference, to the argument's index."""
    for text in wanted.split("|"):
        kind, _, nth = text.strip().partition("#")
        places = [i for i, c_type in enumerate(prototype) if c_type == kind]
        order = int(nth or 1) - 1
        if order < len(places):
            return places[order]
    return None


def _wrong_types(kernel: Kernel, name: str, hook: Hook) -> str:
    prototype = kernel.types.raw_tracepoint(name) or []
    lacking = [
        f"{arg} ({kind})" for arg, kind in hook.args.items() if _index_of(prototype, kind) is None
    ]
    return f"{name}({', '.join(prototype)}) has no {', '.join(lacking)}" if lacking else ""


def _arguments(kernel: Kernel, planned: Planned) -> str:
    """`#define ARG_<hook>_<arg> <index>`: the index of a raw tracepoint's argument on this kernel."""
    name = planned.hook.name
    if not planned.hook.candidates or not planned.hook.candidates[0].startswith("raw_tp:"):
        return ""
    prototype = (
        (kernel.types.raw_tracepoint(planned.symbol) or []) if planned.how == "raw_tp" else []
    )
    indexes = ((arg, _index_of(prototype, kind) or 0) for arg, kind in planned.hook.args.items())
    return "".join(f"#define ARG_{name}_{arg} {index}\n" for arg, index in indexes)
