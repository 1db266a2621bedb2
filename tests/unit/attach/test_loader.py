"""What a failure to compile, load or attach costs, with a fake compiler and fake programs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tracer.attach import loader
from tracer.attach.compiler import Compiled
from tracer.attach.plan import (
    AttachMethod,
    AttachPoint,
    Hook,
    HookState,
    Plan,
    PlannedHook,
    ProbeObjectPlan,
)
from tracer.attach.relocations import Names
from tracer.bpf.links import Link
from tracer.bpf.maps import Map
from tracer.bpf.programs import Program, Refused
from tracer.errors import RmapdError, Temporary
from tracer.kernel.btf import Btf
from tracer.kernel.running import Kernel

INCLUDE = Path(__file__).parents[3] / "probes/include"


class FakeProgram(Program):
    """A program of /dev/null; programs at `gone` are refused."""

    def __init__(self) -> None:
        self.fd = os.open(os.devnull, os.O_RDONLY)

    def attach(self, how: str, symbol: str) -> Link:
        if symbol == "gone":
            raise FileNotFoundError(2, "No such file or directory")
        return Link(os.open(os.devnull, os.O_RDONLY))


def planned(folder: Path, name: str, *symbols: str, needs: str = "") -> ProbeObjectPlan:
    """Return a probe object with one hook, a method for each symbol."""
    source = folder / f"{name}.bpf.c"
    source.write_text(f"/* {name} */\n")
    methods = tuple(
        AttachMethod("kprobe", symbol, (AttachPoint(f"{name}_program", "kprobe", symbol),))
        for symbol in symbols or ("grow",)
    )
    hook = PlannedHook(name, Hook(f"{name}_hook", [], ""), HookState.READY, methods)
    return ProbeObjectPlan(name, source, needs=needs, hooks=(hook,))


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, PlannedHook]]:
    """Return a function that loads probe objects; broken: those that the compiler refuses."""

    def load(
        *probe_objects: ProbeObjectPlan,
        broken: Sequence[str] = (),
        refused: Sequence[str] = (),
        error: RmapdError | None = None,
    ) -> dict[str, PlannedHook]:
        def compile_text(text: str, flags: object, programs: Iterable[str], *_: object) -> Compiled:
            if error:
                raise error
            if wrong := [name for name in broken if f"/* {name} */" in text]:
                raise RmapdError("cannot compile the probes", why=f"error in {wrong[0]}")
            fd = os.open(os.devnull, os.O_RDONLY)
            return Compiled({"map": Map(fd, 1, 4, 8, 1)}, {name: b"" for name in programs})

        def load_program(name: str, *_: Any) -> Program:
            if name in refused:
                raise Refused("R1 type=scalar expected=ctx")
            return FakeProgram()

        monkeypatch.setattr(loader, "compile_text", compile_text)
        monkeypatch.setattr(loader, "load_program", load_program)
        build = loader.BuildEnvironment(Kernel("6.1.0", _no_types()), {}, INCLUDE, {})
        plan = Plan(probe_objects, "", Names((), ()))
        before = set(os.listdir("/proc/self/fd"))
        with loader.load(plan, build, statistics=False) as probes:
            hooks = {hook.hook.name: hook for hook in probes.hooks}
            assert {name for name, hook in hooks.items() if hook.on} == set(probes.points)
        assert set(os.listdir("/proc/self/fd")) == before, "each descriptor is closed"
        return hooks

    return load


def _no_types() -> Btf:
    from tests.support.btf_blob import Blob

    return Btf(Blob().bytes())


Load = Callable[..., dict[str, PlannedHook]]


def test_probe_object_that_does_not_compile_costs_its_own_hooks(tmp_path: Path, load: Load) -> None:
    hooks = load(planned(tmp_path, "one"), planned(tmp_path, "two"), broken=["one"])
    assert hooks["two_hook"].state is HookState.ATTACHED
    one = hooks["one_hook"]
    assert (one.state, one.tried) == (HookState.MISSING, True)
    assert one.reason == "one.bpf.c does not compile: error in one"


def test_probe_object_that_does_not_compile_costs_those_that_need_it(
    tmp_path: Path, load: Load
) -> None:
    hooks = load(
        planned(tmp_path, "below"),
        planned(tmp_path, "other"),
        planned(tmp_path, "above", needs="below"),
        broken=["below"],
    )
    assert hooks["other_hook"].state is HookState.ATTACHED
    assert hooks["above_hook"].reason == "above.bpf.c does not compile: needs below.bpf.c"


def test_nothing_that_compiles_is_an_error_that_names_the_files(tmp_path: Path, load: Load) -> None:
    with pytest.raises(RmapdError, match=r"cannot compile one\.bpf\.c, two\.bpf\.c: error in one"):
        load(planned(tmp_path, "one"), planned(tmp_path, "two"), broken=["one", "two"])


def test_compiler_without_memory_is_temporary(tmp_path: Path, load: Load) -> None:
    with pytest.raises(Temporary):
        load(planned(tmp_path, "one"), error=Temporary("cannot compile the probes"))


def test_next_method_is_tried_where_one_is_refused(tmp_path: Path, load: Load) -> None:
    hooks = load(planned(tmp_path, "one", "gone", "grow"))
    assert (hooks["one_hook"].state, hooks["one_hook"].symbol) == (HookState.ATTACHED, "grow")


def test_hook_is_denied_where_every_method_is_refused(tmp_path: Path, load: Load) -> None:
    hooks = load(
        planned(tmp_path, "one", "gone"), planned(tmp_path, "two"), refused=["two_program"]
    )
    assert hooks["one_hook"].state is HookState.DENIED
    assert hooks["one_hook"].reason == "kprobe gone refused at attach: No such file or directory"
    reason = "kprobe grow refused at load: R1 type=scalar expected=ctx"
    assert (hooks["two_hook"].reason, hooks["two_hook"].tried) == (reason, True)


def test_unknown_constant_is_an_error_that_names_it() -> None:
    point = AttachPoint("window_enter", "kprobe", "grow", constants={"flags": "A | WINDOW_NONE"})
    assert point.constant_values({"A": 1, "WINDOW_NONE": 2}) == {"flags": 3}
    with pytest.raises(RmapdError, match="window_enter at grow has an unknown constant: flags is"):
        point.constant_values({"A": 1})


class Slow:
    """Loads a program when another one is being loaded, too."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2, timeout=30)
        self.closed: list[str] = []

    def load(self, point: AttachPoint) -> Program:
        self.both.wait()
        if point.symbol == "refused":
            raise Refused("invalid mem access")
        return cast(Program, SimpleNamespace(fd=3, close=lambda: self.closed.append(point.program)))


def test_programs_are_loaded_at_once_and_closed_where_nobody_takes_them() -> None:
    slow = Slow()
    taken, left, refused = (
        AttachPoint(name, "raw_tp", name) for name in ("taken", "left", "refused")
    )
    ahead = loader.LoadedAhead(slow, [taken, left])
    assert ahead.load(taken).fd == 3
    ahead.close()
    assert slow.closed == ["left"]
    ahead = loader.LoadedAhead(slow, [taken, refused])
    with pytest.raises(Refused, match="invalid mem access"):
        ahead.load(refused)
    ahead.close()
    assert slow.closed == ["left", "taken"]


def test_program_that_was_not_loaded_ahead_is_loaded_when_it_is_asked_for() -> None:
    later = AttachPoint("later", "kprobe", "later")
    made = cast(Program, object())
    ahead = loader.LoadedAhead(cast(Any, SimpleNamespace(load=lambda _: made)), [])
    assert ahead.load(later) is made
    ahead.close()
