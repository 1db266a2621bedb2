"""Changes of fidelity: offered levels, coverage, and counts that are neither lost nor invented."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
from tracer.config import LEVELS, Config
from tracer.daemon.fidelity import Fidelity
from tracer.daemon.governor import Governor, Pace
from tracer.daemon.levels import ON_DEMAND, probe_objects
from tracer.daemon.program_costs import ProgramCosts
from tracer.daemon.program_statistics import ProgramStatistics
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.tables.params import Params

SAMPLED = "windows are sampled: 1,000 outermost ones of a function a second, on each CPU"


class Fake(Program):
    """A program that attaches unless it is refused, with a run time that the test sets."""

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
    """Make attached hooks of all probe objects but those in `without`."""
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


def fidelity(
    made: AttachedProbes,
    level: str = "full",
    features: Collection[str] = ("oracle",),
    absent: Mapping[str, str] | None = None,
) -> tuple[Fidelity, Params]:
    model = ModelKernel()
    tables = model.tables
    return Fidelity(
        level,
        made,
        tables.params,
        tables.epochs,
        ProgramCosts(
            made,
            ProgramStatistics(made, throughout=True),
            tables.window_times,
            tables.allowances,
        ),
        discover(),
        features,
        absent_features=absent or {},
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


def test_doubt_makes_coverage_partial_until_it_is_withdrawn() -> None:
    one, _ = fidelity(loaded())
    before = dict(one.coverage)
    one.doubt({"M5": "runs were left out", "R2": "not built: stays none"})
    assert one.coverage["M5"] == (Coverage.PARTIAL, "runs were left out")
    assert one.coverage["R2"] == before["R2"]
    one.doubt({})
    assert one.coverage == before


def test_offered_levels_keep_the_coverage_of_required_invariants() -> None:
    full = fidelity(loaded())[0]
    assert full.offered(Config()) == ["full", "sampled", "owner", "migration"]
    assert full.offered(Config(require=["M1", "L4"])) == ["full", "sampled", "owner"], (
        "L4 needs no rwsem hooks, each tree step, and no window"
    )
    assert full.offered(Config(require=["M2"])) == ["full", "sampled", "owner", "migration"]
    assert full.offered(Config(require=["L5"])) == ["full"], "some windows would not be recorded"
    assert full.offered(Config(require=["L1"])) == ["full"]
    assert full.offered(Config(require=["L2"])) == ["full"], "coverage of L2 would be partial"
    assert full.offered(Config(strict=True)) == ["full"]
    assert fidelity(loaded("vma", "locks", "rmap"))[0].offered(Config()) == ["full", "owner"], (
        "there are no windows to sample, and migration would pause nothing more"
    )
    assert fidelity(loaded("vma", "locks", "rmap", "mmap_lock"))[0].offered(Config()) == ["full"]


def test_change_detaches_and_attaches_hooks_and_renews_coverage() -> None:
    made = loaded()
    one, params = fidelity(made)
    assert one.coverage["L1"][0] is Coverage.FULL
    counted = []

    def count() -> None:
        counted.append((epochs(params), "L1" in one.covered))

    assert one.change("owner", "too dear", count) == []
    assert counted == [((1, 1), True)], "counted with the old coverage, while no window can begin"
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
    assert one.coverage["L5"] == (Coverage.PARTIAL, SAMPLED), "windows stay sampled below `sampled`"
    assert "L1" not in one.covered
    assert "L4" in one.covered
    assert one.change("migration", "too dear", count) == []
    assert epochs(params) == (4, 2)
    paused = {
        hook.probe_object: hook.reason for hook in made.hooks if hook.state is HookState.PAUSED
    }
    assert set(paused) == {"locks", "vma", "rmap", "mmap_lock"}
    assert paused["vma"] == "the governor has lowered fidelity to migration: too dear"
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


def test_decisions_of_the_governor_are_carried_out_and_counted() -> None:
    made = loaded()
    made.statistics_fd = 1
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


def test_refused_hook_keeps_the_lower_level() -> None:
    made = loaded()
    made.statistics_fd = 1
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
    assert not any(fake.attached for fake in fakes(made, "locks")), (
        "all hooks of a probe object or none"
    )
    assert one.coverage["L1"][0] is Coverage.NONE


def test_sampled_keeps_all_hooks_attached() -> None:
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
        "the epoch changes, so no window spans the change"
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


def test_session_can_begin_at_sampled() -> None:
    one, params = fidelity(loaded(), "sampled")
    assert (window_ns(params), one.coverage["L1"]) == (1_000_000, (Coverage.PARTIAL, SAMPLED))


def window_ns(params: Params) -> int:
    return int(params.get().window_ns)


class Refusing(ReattachHelper):
    """A reattach helper that refuses everything."""

    def __init__(self) -> None:
        self.asked = 0

    def attach(self, program: Program) -> Link:
        self.asked += 1
        raise OSError(1, "Operation not permitted")


def test_reattach_helper_is_asked_for_attached_programs_only() -> None:
    """A program that runs on demand is attached nowhere."""
    reattach_helper = Refusing()
    on_demand, kept = AttachedProgram(Fake(), "run", "x"), AttachedProgram(Fake(), "kprobe", "x")
    attach_all([on_demand], reattach_helper)
    assert reattach_helper.asked == 0
    with pytest.raises(OSError, match="not permitted"):
        attach_all([kept], reattach_helper)
    assert (reattach_helper.asked, kept.link) == (1, None)


def test_paused_hook_has_a_reason_until_it_is_attached() -> None:
    (hook,) = [hook for hook in loaded().hooks if hook.hook.name == "down_read"]
    paused = replace(hook, state=HookState.PAUSED, reason="why")
    assert (paused.on, paused.attached(0).state) == (False, HookState.ATTACHED)


def test_hooks_that_are_attached_on_demand_are_none_of_a_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They stay as they are, count as available, and are given to the reattach helper."""
    made = loaded()
    made.pause(set(ON_DEMAND), "not needed now")
    one, _ = fidelity(made, features={"oracle", "audit", "owners"})
    assert one.coverage["L3"] == (Coverage.FULL, "")
    for level in ("owner", "migration", "full"):
        one.change(level, "why", lambda: None)
        on_demand = {h.state for h in made.hooks if h.probe_object in ON_DEMAND}
        assert on_demand == {HookState.PAUSED}
        assert one.coverage["L3"][0] is (Coverage.FULL if level == "full" else Coverage.PARTIAL)
    given = set[str]()
    monkeypatch.setattr(
        made, "start_reattach_helper", lambda objects, _user, **_: given.update(objects)
    )
    one.govern(Config(drop_privileges=False))
    assert given == set()
    assert one.govern(Config(fidelity="full", drop_privileges=True)) == ["full"]
    assert given == set(ON_DEMAND)
    made.statistics_fd = 1
    one, _ = fidelity(made, features={"oracle", "audit", "owners"})
    one.govern(Config(drop_privileges=True))
    assert given == {*ON_DEMAND, "vma", "locks", "rmap", "mmap_lock"}


def test_levels_load_what_is_attached_on_demand() -> None:
    assert all(set(ON_DEMAND) <= (probe_objects(level) or set(ON_DEMAND)) for level in LEVELS)


def test_reason_of_an_absent_feature_is_given_for_the_other_way_too() -> None:
    """A kernel's rwsem is another one, whose owner is not where it is looked for."""
    made = loaded("vma", "locks", "rmap", "owners")
    lacks = "rw_semaphore.owner is not in this kernel's BTF"
    one, _ = fidelity(made, features={"oracle", "audit"}, absent={"owners": lacks})
    level, reason = one.coverage["L3"]
    assert level is Coverage.NONE
    assert reason.endswith(f"or else audit, owners, owner_enters ({lacks})")
