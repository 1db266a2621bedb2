"""A change of fidelity: what may be chosen, what is covered then, and that what goes on meanwhile is neither lost nor made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.model_kernel import ModelKernel
from tests.support.native import PROBES
from tracer.attach import plan
from tracer.attach.attached import AttachedProbes, AttachedProgram, attach_all
from tracer.attach.plan import AttachMethod, HookState, PlannedHook
from tracer.attach.reattach_helper import ReattachHelper
from tracer.bpf.links import Link
from tracer.bpf.programs import Program, RunStatistics
from tracer.config import Config
from tracer.daemon.fidelity import Fidelity
from tracer.daemon.governor import Governor, Pace
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.tables.params import Params

SAMPLED = "windows are sampled: 1,000 outermost ones of a function a second, on each CPU"


class Fake(Program):
    """A program that attaches, or not, and has run for as long as the test says."""

    def __init__(self) -> None:
        self.seconds, self.refused, self.attached = 0.0, False, 0

    def attach(self, how: str, symbol: str) -> Link:
        if self.refused:
            raise PermissionError(1, "Operation not permitted")
        self.attached += 1
        return FakeLink(self)

    def statistics(self) -> RunStatistics:
        return RunStatistics(1, 0, self.seconds, 0)


class FakeLink(Link):
    def __init__(self, program: Fake) -> None:
        self._program = program

    def close(self) -> None:
        self._program.attached -= 1


def loaded(*without: str) -> AttachedProbes:
    """Every hook of the stems attached, but those of the stems `without`."""
    made = AttachedProbes()
    for path in sorted(PROBES.glob("*.toml")):
        for hook in plan.read_probe_object(path).hook:
            there = path.stem not in without
            state = HookState.ATTACHED if there else HookState.MISSING
            made.hooks.append(
                PlannedHook(path.stem, hook, state, (AttachMethod("kprobe", hook.name, ()),))
            )
            if there:
                program = Fake()
                made.points[hook.name] = [
                    AttachedProgram(program, "kprobe", hook.name, program.attach("", ""))
                ]
    return made


def fidelity(made: AttachedProbes, level: str = "full") -> tuple[Fidelity, Params]:
    model = ModelKernel()
    tables = model.tables
    return Fidelity(
        level,
        made,
        tables.params,
        tables.epochs,
        tables.window_times,
        tables.allowances,
        discover(),
        {"oracle"},
    ), tables.params


def fakes(made: AttachedProbes, probe_object: str) -> list[Fake]:
    names = [
        hook.hook.name
        for hook in made.hooks
        if hook.probe_object == probe_object and hook.hook.name in made.points
    ]
    return [
        point.program
        for name in names
        for point in made.points[name]
        if isinstance(point.program, Fake)
    ]


def epochs(params: Params) -> tuple[int, int]:
    now = params.get()
    return now.window_epoch, now.mmap_epoch


def test_coverage_is_partial_while_there_is_doubt_and_whole_again_after_it() -> None:
    one, _ = fidelity(loaded())
    before = dict(one.coverage)
    one.doubt({"M5": "runs were left out", "R1": "not built: stays none"})
    assert one.coverage["M5"] == (Coverage.PARTIAL, "runs were left out")
    assert one.coverage["R1"] == before["R1"]
    one.doubt({})
    assert one.coverage == before


def test_what_is_offered() -> None:
    full = fidelity(loaded())[0]
    assert full.offered(Config()) == ["full", "sampled", "owner", "migration"]
    assert full.offered(Config(require=["M1", "L4"])) == ["full", "sampled", "owner"], (
        "L4 needs no rwsem hooks, each tree step, and no window"
    )
    assert full.offered(Config(require=["M2"])) == ["full", "sampled", "owner", "migration"]
    assert full.offered(Config(require=["L5"])) == ["full"], "some windows would not be seen"
    assert full.offered(Config(require=["L1"])) == ["full"]
    assert full.offered(Config(require=["L2"])) == ["full"], "of L2 a part would stay"
    assert full.offered(Config(strict=True)) == ["full"]
    assert fidelity(loaded("vma", "locks", "rmap"))[0].offered(Config()) == ["full", "owner"], (
        "no windows to sample; migration would take no more off"
    )
    assert fidelity(loaded("vma", "locks", "rmap", "mmap_lock"))[0].offered(Config()) == ["full"]


def test_a_change_detaches_and_attaches_and_coverage_follows() -> None:
    made = loaded()
    one, params = fidelity(made)
    assert one.coverage["L1"][0] is Coverage.FULL
    counted = []

    def count() -> None:
        counted.append((epochs(params), "L1" in one.checked))

    assert one.change("owner", "too dear", count) == []
    assert counted == [((1, 1), True)], "by what was covered, and with no window opening"
    assert epochs(params) == (2, 2)
    assert not any(
        fake.attached
        for probe_object in ("locks", "mmap_lock")
        for fake in fakes(made, probe_object)
    )
    assert all(
        fake.attached == 1
        for probe_object in ("vma", "forks", "migration")
        for fake in fakes(made, probe_object)
    )
    assert (one.level, one.coverage["L1"][0], one.coverage["L4"][0]) == (
        "owner",
        Coverage.NONE,
        Coverage.FULL,
    )
    assert one.coverage["L5"] == (Coverage.PARTIAL, SAMPLED), (
        "below `sampled` they go on being sampled"
    )
    assert "L1" not in one.checked
    assert "L4" in one.checked
    assert one.change("migration", "too dear", count) == []
    assert epochs(params) == (4, 2)
    resting = {
        hook.probe_object: hook.reason for hook in made.hooks if hook.state is HookState.PAUSED
    }
    assert set(resting) == {"locks", "vma", "rmap", "mmap_lock"}
    assert resting["vma"] == "the governor has lowered fidelity to migration: too dear"
    assert one.change("full", "there is room", count) == []
    assert epochs(params) == (6, 4)
    assert all(
        fake.attached == 1
        for points in made.points.values()
        for fake in [points[0].program]
        if isinstance(fake, Fake)
    )
    assert all(hook.state is HookState.ATTACHED for hook in made.hooks)
    assert one.coverage == fidelity(loaded())[0].coverage


def test_the_governor_is_obeyed_and_counted() -> None:
    made = loaded()
    one, _ = fidelity(made)
    one.governor = Governor(one.offered(Config()), 0.01, 1, Pace(look=1, over=3, under=3, rest=5))
    cost = 0.5
    seen = []
    for now in range(90):
        for fake in fakes(made, "locks"):
            fake.seconds += cost * bool(fake.attached) / len(fakes(made, "locks"))
        cost = 0.0 if now > 8 else cost
        one.look(float(now), lambda: None)
        seen.append(one.level)
    assert list(dict.fromkeys(seen)) == ["full", "sampled", "owner"]
    assert (seen[-1], one.changes) == ("full", {"lower": 2, "raise": 2})


def test_a_hook_that_is_refused_leaves_it_low() -> None:
    made = loaded()
    one, _ = fidelity(made)
    one.governor = Governor(one.offered(Config()), 0.01, 1, Pace(look=1, over=2, under=2, rest=4))
    for now in range(6):
        fakes(made, "locks")[0].seconds += 0.5
        one.look(float(now), lambda: None)
    assert one.level == "owner"
    fakes(made, "locks")[3].refused = True
    for now in range(6, 40):
        one.look(float(now), lambda: None)
    assert (one.level, one.changes, one.governor.levels) == (
        "owner",
        {"lower": 2, "raise": 0},
        ["owner", "migration"],
    )
    assert not any(fake.attached for fake in fakes(made, "locks")), "all or none"
    assert one.coverage["L1"][0] is Coverage.NONE


def test_at_sampled_everything_stays_attached() -> None:
    made = loaded()
    one, params = fidelity(made)
    assert one.change("sampled", "too dear", lambda: None) == []
    assert all(
        fake.attached == 1
        for points in made.points.values()
        for fake in [points[0].program]
        if isinstance(fake, Fake)
    )
    assert (epochs(params), window_ns(params)) == ((2, 0), 1_000_000), (
        "no window is half of the one kind"
    )
    assert {name for name, (level, _) in one.coverage.items() if level is Coverage.FULL} >= {
        "M1",
        "M2",
        "M3",
        "L4",
    }
    assert all(
        one.coverage[name] == (Coverage.PARTIAL, SAMPLED)
        for name in ("L1", "L2", "L3", "L5", "L6", "V2")
    )
    one.sample(50)
    assert (window_ns(params), one.coverage["L1"][1]) == (
        20_000_000,
        SAMPLED.replace("1,000", "50"),
    )
    assert one.change("full", "there is room", lambda: None) == []
    assert (window_ns(params), one.coverage) == (0, fidelity(loaded())[0].coverage)


def test_a_session_may_begin_sampled() -> None:
    one, params = fidelity(loaded(), "sampled")
    assert (window_ns(params), one.coverage["L1"]) == (1_000_000, (Coverage.PARTIAL, SAMPLED))


def window_ns(params: Params) -> int:
    return int(params.get().window_ns)


class Refusing(ReattachHelper):
    """A keeper that was given nothing."""

    def __init__(self) -> None:
        self.asked = 0

    def attach(self, program: Program) -> Link:
        self.asked += 1
        raise OSError(1, "Operation not permitted")


def test_the_keeper_is_asked_for_what_is_attached() -> None:
    """What is run on demand is nowhere attached: nobody is asked."""
    reattach_helper = Refusing()
    on_demand, kept = AttachedProgram(Fake(), "run", "x"), AttachedProgram(Fake(), "kprobe", "x")
    attach_all([on_demand], reattach_helper)
    assert reattach_helper.asked == 0
    with pytest.raises(OSError, match="not permitted"):
        attach_all([kept], reattach_helper)
    assert (reattach_helper.asked, kept.link) == (1, None)


def test_a_resting_hook_says_why() -> None:
    (hook,) = [hook for hook in loaded().hooks if hook.hook.name == "down_read"]
    resting = replace(hook, state=HookState.PAUSED, reason="why")
    assert (resting.on, resting.attached(0).state) == (False, HookState.ATTACHED)
