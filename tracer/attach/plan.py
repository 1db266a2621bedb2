"""The attach plan as data: hooks as `probes/*.toml` declare them, and as they resolve.

A probe object is a pair of files: `NAME.bpf.c` has the programs, `NAME.toml` the hooks that they
are for. A hook lists candidates in order of preference:

    raw_tp:NAME       the raw tracepoint NAME
    fentry:FUNCTION   entry of a kernel function (and fexit at its return), by a BPF trampoline
    kprobe:FUNCTION   the same by a kprobe (and a kretprobe); an entry alone by fprobe, where the
                      kernel's is cheaper (the method `kprobe.multi`)
    iter:TARGET       the BPF iterator over TARGET (`task`)
    run:              not attached; the daemon runs the program on demand

No kernel version is ever tested: a candidate is there, or the hook has the reason why it is not.

A hook goes through three steps. *Resolving* (tracer.attach.resolver) turns the candidates that this
kernel has into attach methods, without loading anything. *Loading* (tracer.attach.loader) compiles
the probe objects and gives the programs of the first method to the verifier. *Attaching* links
them: all points of a method attach, or it is undone and the next one is tried. The hook's state and
reason show how far that went:

    missing      resolving: this kernel's BTF or symbols have no such tracepoint, function or
                 iterator; or the function lacks an argument; or the kernel lacks a struct member
                 that the programs read; or the probe object that this one needs is unusable.
                 Loading: the probe object does not compile.
    denied       resolving: the function is there and cannot be hooked (`notrace`, no kprobes,
                 fentry refused). Loading, attaching: the kernel refused each method.
    attached     to the function that the first candidate names. No reason.
    substituted  to another function or a clone, or rebuilt from surrounding calls; see the reason.
    paused       by the governor, which lowered fidelity. The programs stay loaded.
    detached     by someone else: an ftrace or kprobe switch, bpftool, a module that is gone.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from tracer.attach import relocations, struct_slices
from tracer.errors import RmapdError

ABSENCES: Mapping[str, str] = {
    "raw_tp": "no raw tracepoint {} in this kernel",
    "iter": "no BPF iterator over {} in this kernel",
    "fentry": "no function {} in this kernel's BTF",
    "kprobe": "no symbol {} in this kernel",
}
"""The reason where a kernel does not have what a candidate names, by the candidate's method."""
NOTRACE = "{} is notrace"
"""The reason where a kernel has a function, and lets nothing be attached to it."""
NEEDS_PROBE_OBJECT = "needs the probe object {}"
NOTHING_TO_ACCOMPANY = "of no use: none of the functions it goes with can be hooked"
"""The reasons where a hook is missing because others are."""
REFUSED_AT = "{} {} refused at {}: {}"
"""The reason where a method was tried: method, symbol, step, error."""
ATTACHED_AT_TIMES = "attached only while "
"""How the reason of a hook begins that is paused until it is needed."""


class HookState(enum.StrEnum):
    """Where a hook stands; the module's docstring has the reasons of each state.

    READY: resolved, and not loaded yet.
    """

    READY = "ready"
    ATTACHED = "attached"
    SUBSTITUTED = "substituted"
    MISSING = "missing"
    DENIED = "denied"
    PAUSED = "paused"
    DETACHED = "detached"


class Rebuilt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A window of a function that cannot be hooked, rebuilt from the calls around it.

    begin: the function whose entry opens the window.
    ends: functions, the entry of each of which closes it.
    args: as in Hook, of `begin`.
    """

    begin: str
    ends: list[str]
    args: dict[str, str] = {}


class Hook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One hook as its `.toml` declares it.

    candidates: in order of preference (the module's docstring). note: why these, for the reader.
    args: what the programs read: argument -> its type for a raw tracepoint (`bool#1` is the first
        bool), its parameter for a function (tracer.attach.arguments).
    constants: name -> what is written into the programs: an enumerator of the header that daemon
        and programs share, or a sum of some (`A | B`).
    window: the name of the window that the function's entry and return open and close (`WINDOW_…`).
    program, leave: the programs at entry and return, where they are not the default ones.
    programs_need: a function; on kernels without it `program` and `leave` are the default ones.
    before: the program at entry that a kretprobe needs, as registers hold no arguments at a return.
    alone: false where the hook is of no use unless another one of the probe object is attached.
    rebuilt: the last resort, where no candidate is there.
    """

    name: str
    candidates: list[str]
    note: str
    args: dict[str, str] = {}
    constants: dict[str, str] = {}
    window: str = ""
    program: str = ""
    leave: str = ""
    programs_need: str = ""
    before: str = ""
    alone: bool = True
    rebuilt: Rebuilt | None = None

    @property
    def first_method(self) -> str:
        """The method of the first candidate; empty where there is none."""
        return self.candidates[0].partition(":")[0] if self.candidates else ""

    @property
    def at_entry(self) -> str:
        """The program at entry; empty where there is none."""
        return self.program or ("window_enter" if self.window else "" if self.leave else self.name)

    @property
    def at_return(self) -> str:
        """The program at return; empty where there is none."""
        return self.leave or ("window_leave" if self.window else "")

    @property
    def program_constants(self) -> dict[str, str]:
        """The constants, with those that each window has."""
        if not self.window:
            return self.constants
        return {"window": f"WINDOW_{self.window}", "returns": "RETURNS_ERRNO"} | self.constants


class ProbeObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `.toml`: its hooks, and what its programs need of the kernel's types.

    types, enums: members and enumerators (tracer.attach.struct_slices).
    needs: the probe object without which this one is unusable.
    """

    title: str
    hook: list[Hook]
    types: dict[str, list[str]] = {}
    enums: dict[str, list[str]] = {}
    needs: str = ""


def read_probe_object(path: Path) -> ProbeObject:
    """Parse a `.toml`. Raises RmapdError, which names the file and the key that is wrong."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ProbeObject)
    except (OSError, msgspec.DecodeError) as error:
        raise RmapdError(
            f"cannot read the attach plan {path}",
            why=str(error),
            hint="correct the file, or reinstall rmapd",
        ) from error


@dataclass(frozen=True)
class AttachPoint:
    """One program at one symbol.

    places: argument -> its offset in the program's context. offsets: name -> offset to read at.
    constants: as in Hook. The loader writes them into the program (tracer.attach.relocations).
    """

    program: str
    how: str
    symbol: str
    places: dict[str, int] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)

    def constant_values(self, enumerators: Mapping[str, int]) -> dict[str, int]:
        """Return the number of each constant and offset.

        enumerators: of the shared header. Raises RmapdError where a name is none of them.
        """
        values = dict(self.offsets)
        for name, text in self.constants.items():
            words = [word.strip() for word in text.split("|")]
            literal = [word for word in words if word[:1].isdigit()]
            named = [word for word in words if word not in literal]
            if unknown := [word for word in named if word not in enumerators]:
                raise RmapdError(
                    f"the program {self.program} at {self.symbol} has an unknown constant",
                    why=f"{name} is {', '.join(unknown)}",
                    hint="correct the probe's .toml, or reinstall rmapd",
                )
            values[name] = sum(int(word, 0) for word in literal)
            values[name] += sum(enumerators[word] for word in named)
        return values


@dataclass(frozen=True)
class AttachMethod:
    """One candidate that this kernel seems to allow.

    instead: why it is a substitute; empty where it is not.
    """

    how: str
    symbol: str
    points: tuple[AttachPoint, ...]
    instead: str = ""


@dataclass(frozen=True)
class PlannedHook:
    """A hook on this kernel.

    methods: in order of preference. chosen: index of the one that is in use.
    tried: this kernel could have the hook, and compiling, loading or attaching it failed.
    """

    probe_object: str
    hook: Hook
    state: HookState
    methods: tuple[AttachMethod, ...] = ()
    reason: str = ""
    chosen: int = 0
    tried: bool = False

    @property
    def how(self) -> str:
        """How it is attached, or would be; empty where it cannot be."""
        return self.methods[self.chosen].how if self.methods else ""

    @property
    def symbol(self) -> str:
        """Where it is attached, or would be; empty where it cannot be."""
        return self.methods[self.chosen].symbol if self.methods else ""

    @property
    def on(self) -> bool:
        """Whether its programs are attached now."""
        return self.state in (HookState.ATTACHED, HookState.SUBSTITUTED)

    def attached(self, method: int) -> PlannedHook:
        """Return the hook as it is once all points of this method are attached."""
        instead = self.methods[method].instead
        state = HookState.SUBSTITUTED if instead else HookState.ATTACHED
        return replace(self, state=state, reason=instead, chosen=method)

    def failed(self, state: HookState, reason: str, *, tried: bool = False) -> PlannedHook:
        """Return the hook as it is without its programs."""
        return replace(self, state=state, reason=reason, tried=tried)


@dataclass(frozen=True)
class ProbeObjectPlan:
    """One probe object on this kernel. missing: members and enumerators that this kernel lacks."""

    name: str
    source: Path
    needs: str = ""
    hooks: tuple[PlannedHook, ...] = ()
    missing: tuple[struct_slices.Missing, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether one of its hooks at least can be loaded."""
        return any(hook.state is HookState.READY for hook in self.hooks)


@dataclass(frozen=True)
class Plan:
    """All probe objects on this kernel.

    header: C text of the types and numbers that their programs need. names: of what the loader
    writes into the programs.
    """

    probe_objects: tuple[ProbeObjectPlan, ...]
    header: str
    names: relocations.Names
