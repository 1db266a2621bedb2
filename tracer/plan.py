"""The attach plan: which hook gets which of its candidates on this kernel, with the reason for each miss.

A stem is a pair `NAME.bpf.c` and `NAME.toml`. A candidate is `raw_tp:NAME`, `fentry:NAME`, `fexit:NAME`, `kprobe:NAME`,
`kretprobe:NAME`, `iter:TARGET` or `run:` (no attachment: run on demand). No kernel version is ever tested.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from tracer import slices
from tracer.errors import RmapdError
from tracer.kernel import Kernel


class State(enum.StrEnum):
    """Where a hook stands. `READY` becomes ATTACHED or SUBSTITUTED when the kernel took it, DENIED when it refused."""

    READY = "ready"
    ATTACHED = "attached"
    SUBSTITUTED = "substituted"
    MISSING = "missing"
    DENIED = "denied"


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One hook as its `.toml` states it. `args` names raw arguments by type: `write = "bool#1"` is the first bool."""

    name: str
    candidates: list[str]
    note: str
    args: dict[str, str] = {}


class Stem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `.toml`: a title, the members its programs read, the enumerators they need, and its hooks."""

    title: str
    hook: list[Hook]
    types: dict[str, list[str]] = {}
    enums: dict[str, list[str]] = {}


@dataclass(frozen=True)
class Planned:
    """A hook resolved (or not) on this kernel."""

    stem: str
    hook: Hook
    state: State
    how: str = ""
    symbol: str = ""
    reason: str = ""
    substitute: bool = False

    @property
    def program(self) -> str:
        """The name of the C function. BCC recognises iterators by their prefix."""
        return f"bpf_iter__{self.symbol}" if self.how == "iter" else f"rmapd_{self.hook.name}"

    def outcome(self, state: State, reason: str = "") -> Planned:
        if state is State.ATTACHED and self.substitute:
            state = State.SUBSTITUTED
        return replace(self, state=state, reason=reason or self.reason)


@dataclass
class StemPlan:
    """One stem on this kernel: its source, its hooks, and the members it needs and this kernel lacks."""

    name: str
    source: Path
    hooks: list[Planned] = field(default_factory=list)
    missing: list[slices.Missing] = field(default_factory=list)


@dataclass
class Plan:
    """All stems on this kernel, and the one header of types and argument numbers made for them."""

    stems: list[StemPlan] = field(default_factory=list)
    header: str = ""


def read_stem(path: Path) -> Stem:
    """Parse a stem's `.toml`; RmapdError names the file and the key that is wrong."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Stem)
    except (OSError, msgspec.DecodeError) as error:
        raise RmapdError(f"cannot read the attach plan {path}", why=str(error)) from error


def make(kernel: Kernel, folders: Sequence[Path], only: frozenset[str] | None = None) -> Plan:
    """Resolve all stems found in the folders (or only those named) against this kernel."""
    plan, types, enums = Plan(), dict[str, list[str]](), dict[str, list[str]]()
    for path in sorted(path for folder in folders for path in folder.glob("*.toml")):
        if only is not None and path.stem not in only:
            continue
        stem = read_stem(path)
        resolved = _resolve_stem(kernel, path, stem)
        plan.stems.append(resolved)
        plan.header += "".join(_arguments(kernel, hook) for hook in resolved.hooks)
        if not resolved.missing:
            types |= stem.types
            enums |= stem.enums
    if not plan.stems:
        raise RmapdError(f"no probes in {', '.join(map(str, folders))}", hint="reinstall rmapd")
    plan.header += slices.make(kernel.types, types, enums).header
    return plan


def _resolve_stem(kernel: Kernel, path: Path, stem: Stem) -> StemPlan:
    lacking = list(slices.make(kernel.types, stem.types, stem.enums).missing.values())
    resolved = StemPlan(path.stem, path.with_suffix(".bpf.c"), missing=lacking)
    for hook in stem.hook:
        planned = resolve(kernel, path.stem, hook)
        if lacking and planned.state is State.READY:
            planned = replace(planned, state=State.MISSING, reason=str(lacking[0]))
        resolved.hooks.append(planned)
    return resolved


def resolve(kernel: Kernel, stem: str, hook: Hook) -> Planned:
    """The first candidate that this kernel has; the reasons of all when it has none."""
    reasons, denied = [], False
    for index, candidate in enumerate(hook.candidates):
        how, _, name = candidate.partition(":")
        if how not in _TRIALS:
            raise RmapdError(f"hook {hook.name} of {stem}.toml: unknown candidate {candidate!r}", hint=", ".join(_TRIALS))
        trial = _TRIALS[how](kernel, name)
        if trial.symbol is not None and (wrong := _wrong_arguments(kernel, how, name, hook)):
            trial = _Trial(reason=wrong)
        if trial.symbol is not None:
            note = f"instead of {hook.candidates[0]}" if index else f"clone of {name}" if trial.symbol != name else ""
            return Planned(stem, hook, State.READY, how, trial.symbol, note, bool(note))
        reasons.append(trial.reason)
        denied |= trial.refused
    return Planned(stem, hook, State.DENIED if denied else State.MISSING, reason="; ".join(reasons))


@dataclass(frozen=True)
class _Trial:
    """One candidate on this kernel: a symbol to attach to, or the reason why not; refused: there, but not allowed."""

    symbol: str | None = None
    reason: str = ""
    refused: bool = False


def _raw_tracepoint(kernel: Kernel, name: str) -> _Trial:
    known = kernel.types.raw_tracepoint(name) is not None
    return _Trial(name) if known else _Trial(reason=f"no raw tracepoint {name} in this kernel")


def _iterator(kernel: Kernel, name: str) -> _Trial:
    known = kernel.types.function(f"bpf_iter_{name}") is not None
    return _Trial(name) if known else _Trial(reason=f"no BPF iterator over {name} in this kernel")


def _trampoline(kernel: Kernel, name: str) -> _Trial:
    if kernel.types.function(name) is None:
        return _Trial(reason=f"no function {name} in this kernel's BTF")
    if kernel.traceable is not None and name not in kernel.traceable:
        return _Trial(reason=f"{name} is notrace", refused=True)
    return _Trial(reason=kernel.fentry_refused, refused=True) if kernel.fentry_refused else _Trial(name)


def _breakpoint(kernel: Kernel, name: str) -> _Trial:
    clones = kernel.clones(name)
    usable = [symbol for symbol in clones if kernel.traceable is None or symbol in kernel.traceable]
    if not usable:
        return _Trial(reason=f"{name} is notrace" if clones else f"no symbol {name} in this kernel", refused=bool(clones))
    return _Trial(reason=kernel.kprobe_refused, refused=True) if kernel.kprobe_refused else _Trial(usable[0])


_TRIALS: dict[str, Callable[[Kernel, str], _Trial]] = {
    "raw_tp": _raw_tracepoint,
    "iter": _iterator,
    "fentry": _trampoline,
    "fexit": _trampoline,
    "kprobe": _breakpoint,
    "kretprobe": _breakpoint,
    "run": lambda _kernel, name: _Trial(name),
}


def _index_of(prototype: list[str], wanted: str) -> int | None:
    """`type` or `type#n` (n-th of that type, from 1) to the argument's index."""
    kind, _, nth = wanted.partition("#")
    places = [i for i, c_type in enumerate(prototype) if c_type == kind]
    order = int(nth or 1) - 1
    return places[order] if order < len(places) else None


def _wrong_arguments(kernel: Kernel, how: str, name: str, hook: Hook) -> str:
    if how != "raw_tp":
        return ""
    prototype = kernel.types.raw_tracepoint(name) or []
    lacking = [f"{arg} ({kind})" for arg, kind in hook.args.items() if _index_of(prototype, kind) is None]
    return f"{name}({', '.join(prototype)}) has no {', '.join(lacking)}" if lacking else ""


def _arguments(kernel: Kernel, planned: Planned) -> str:
    """`#define ARG_<hook>_<arg> <index>`: the index of a raw argument on this kernel."""
    name = planned.hook.name
    prototype = (kernel.types.raw_tracepoint(planned.symbol) or []) if planned.how == "raw_tp" else []
    indexes = ((arg, _index_of(prototype, kind) or 0) for arg, kind in planned.hook.args.items())
    return "".join(f"#define ARG_{name}_{arg} {index}\n" for arg, index in indexes)
