"""The ways a hook on a function has, in order: entry and return, kprobes instead of trampolines, clones, windows that are rebuilt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from tests.support.btf_blob import Blob, kernel_types
from tests.support.native import PROBES, attach_plan
from tracer.attach import plan
from tracer.attach.plan import Hook, Planned, Rebuilt, State
from tracer.kernel.btf import Btf
from tracer.kernel.running import Kernel

SHIPPED = {
    hook.name: hook for path in PROBES.glob("*.toml") for hook in plan.read_probe_object(path).hook
}
BASE = {"begins": ["vma"], "ends": [], "ends_too": [], "grow": ["vma", "start"], "dup": []}


def kernel(
    symbols: Iterable[str] | None = None,
    functions: Iterable[str] = BASE,
    *,
    fentry: str = "",
    preempts: bool = False,
) -> Kernel:
    """Functions are those of BTF, symbols those of kallsyms; by default the same."""
    blob = Blob()
    u64, vma = blob.integer("unsigned long", 8), blob.pointer(blob.record("vm_area_struct", 8, []))
    for name in functions:
        blob.function(
            name, {parameter: vma if parameter == "vma" else u64 for parameter in BASE[name]}, u64
        )
    made = Kernel(
        "test", Btf(blob.bytes()), Path("/nonexistent"), Path("/nonexistent"), lambda _types: fentry
    )
    made.symbols = dict.fromkeys(functions if symbols is None else symbols, 1)
    made.kprobe_refused, made.preempts = "", preempts
    return made


def window(**more: object) -> Hook:
    hook = Hook(
        "w",
        ["fentry:grow", "kprobe:grow"],
        "note",
        {"vma": "vma"},
        {"flags": "WINDOW_SHAPES"},
        window="vma_expand",
    )
    return msgspec.structs.replace(hook, **more)


REBUILT = Rebuilt("begins", ["ends", "ends_too"], {"vma": "vma"})


def resolved(made: Kernel, hook: Hook) -> Planned:
    return plan.resolve(made, "test", hook)


def points(found: Planned) -> list[list[str]]:
    return [
        [f"{point.program}@{point.how}:{point.symbol}" for point in way.points]
        for way in found.ways
    ]


def test_a_window_is_its_functions_entry_and_return() -> None:
    found = resolved(kernel(), window())
    assert points(found) == [
        ["window_enter@fentry:grow", "window_leave@fexit:grow"],
        ["window_enter@kprobe:grow", "window_leave@kretprobe:grow"],
    ]
    trampoline, breakpoint = (way.points for way in found.ways)
    assert [point.places for point in trampoline] == [{"vma": 0, "returned": 16}] * 2
    assert [point.places for point in breakpoint] == [
        {"vma": 112, "stack": 152},
        {"stack": 152, "returned": 80},
    ]
    numbers = {"window": "WINDOW_vma_expand", "returns": "RETURNS_ERRNO", "flags": "WINDOW_SHAPES"}
    assert all(point.constants == numbers for way in found.ways for point in way.points)
    assert breakpoint[1].offsets == {"popped": 8}


def test_what_is_only_left_needs_its_entry_for_a_kretprobe() -> None:
    """A trampoline has the arguments at the return still."""
    found = resolved(kernel(), window(window="", leave="tried", before="trying"))
    assert points(found) == [["tried@fexit:grow"], ["trying@kprobe:grow", "tried@kretprobe:grow"]]


def test_a_hook_with_its_own_program() -> None:
    assert points(resolved(kernel(), window(window="", program="step"))) == [
        ["step@fentry:grow"],
        ["step@kprobe:grow"],
    ]
    assert points(resolved(kernel(), window(window=""))) == [["w@fentry:grow"], ["w@kprobe:grow"]]


def test_kprobes_where_trampolines_are_refused() -> None:
    found = resolved(kernel(fentry="EPERM"), window())
    assert ([way.how for way in found.ways], found.reason, found.state) == (
        ["kprobe"],
        "EPERM",
        State.READY,
    )


def test_kprobes_first_where_programs_are_preempted() -> None:
    hook = window(rebuilt=REBUILT)
    assert [(way.how, way.symbol) for way in resolved(kernel(preempts=True), hook).ways] == [
        ("kprobe", "grow"),
        ("kprobe", "begins"),
        ("fentry", "grow"),
        ("fentry", "begins"),
    ]


@pytest.mark.parametrize(
    ("mode", "counts", "trusted"),
    [("full", False, False), ("full", True, True), ("voluntary", False, True)],
)
def test_kprobes_that_leave_out_runs_without_a_count_are_not_trusted(
    tmp_path: Path, mode: str, counts: bool, trusted: bool
) -> None:
    """6.1 with preempt=full: a healthy kernel was accused by visits that nobody saw (tests/unit/invariants/test_migration_walks.py)."""
    blob = Blob()
    kprobe = blob.record(
        "", 8, [("missed", blob.integer("unsigned long long", 8), 0)] if counts else []
    )
    perf_event = blob.record(
        "", 8, [("", blob.record("", 8, [("kprobe", kprobe, 0)], union=True), 0)]
    )
    blob.record(
        "bpf_link_info",
        8,
        [("", blob.record("", 8, [("perf_event", perf_event, 0)], union=True), 0)],
    )
    made = Kernel("test", Btf(blob.bytes()), tmp_path, tmp_path, lambda _types: "")
    (tmp_path / "bus/event_source/devices/kprobe").mkdir(parents=True)
    (tmp_path / "kernel/debug/sched").mkdir(parents=True)
    (tmp_path / "kernel/debug/sched/preempt").write_text(
        "none voluntary full\n".replace(mode, f"({mode})")
    )
    assert (made.kprobe_refused == "") is trusted
    assert trusted or "before 6.7" in made.kprobe_refused


def test_other_names_of_a_function_come_later_and_are_substitutes() -> None:
    hook = window(candidates=["fentry:gone", "kprobe:gone", "fentry:grow", "kprobe:grow"])
    found = resolved(kernel(), hook)
    assert [(way.how, way.instead) for way in found.ways] == [
        ("fentry", "instead of fentry:gone"),
        ("kprobe", "instead of fentry:gone"),
    ]
    assert "no function gone" in found.reason
    assert found.attached(1).state is State.SUBSTITUTED


def test_a_clone_is_hooked_where_no_argument_is_asked_for() -> None:
    made = kernel(["grow.isra.0", "dup.constprop.0"], fentry="EPERM")
    refused = resolved(made, window())
    assert refused.state is State.DENIED
    assert (
        "grow.isra.0 is a clone: its arguments may be others than those of grow" in refused.reason
    )
    found = resolved(made, Hook("d", ["fentry:dup", "kprobe:dup"], ""))
    assert (points(found), found.ways[0].instead) == (
        [["d@kprobe:dup.constprop.0"]],
        "clone of dup",
    )


def test_the_function_itself_goes_before_its_clones() -> None:
    assert resolved(kernel(["grow.isra.0", "grow"]), window()).ways[1].symbol == "grow"


def test_an_argument_that_this_kernels_function_does_not_have() -> None:
    found = resolved(kernel(), window(args={"vma": "vma", "end": "end"}))
    assert (found.state, found.ways) == (State.MISSING, ())
    assert found.reason == "grow(vma, start) has no end (end)"


def test_a_rebuilt_window_is_the_last_way() -> None:
    found = resolved(kernel(), window(rebuilt=REBUILT))
    assert points(found)[2:] == [
        ["window_enter@fentry:begins", "window_end@fentry:ends", "window_end@fentry:ends_too"],
        ["window_enter@kprobe:begins", "window_end@kprobe:ends", "window_end@kprobe:ends_too"],
    ]
    way = found.ways[2]
    assert way.instead == "rebuilt: from begins to ends or ends_too"
    assert way.points[0].constants["flags"] == "WINDOW_SHAPES | WINDOW_REBUILT"
    assert way.points[0].places == {"vma": 0, "returned": 8}
    assert way.points[1].constants["window"] == "WINDOW_vma_expand"
    assert found.attached(2).state is State.SUBSTITUTED


def test_a_rebuilt_window_without_flags_of_its_own() -> None:
    (_, _, way, _) = resolved(kernel(), window(constants={}, rebuilt=REBUILT)).ways
    assert way.points[0].constants["flags"] == "0 | WINDOW_REBUILT"


@pytest.mark.parametrize("without", ["begins", "ends", "ends_too"])
def test_what_surrounds_a_function_must_all_be_there(without: str) -> None:
    names = [name for name in BASE if name not in (without, "grow")]
    found = resolved(kernel(names, names), window(rebuilt=REBUILT))
    assert (found.state, found.ways) == (State.MISSING, ())


@pytest.mark.parametrize("clone", ["begins.isra.0", "ends.part.0"])
def test_a_clone_ends_no_rebuilt_window(clone: str) -> None:
    """It may stand for some of the calls only, and is not the symbol that would be attached to."""
    names = [clone if clone.startswith(f"{name}.") else name for name in BASE if name != "grow"]
    found = resolved(
        kernel(names, [name for name in names if "." not in name]), window(rebuilt=REBUILT)
    )
    assert found.ways == ()


def test_a_beginning_without_the_argument_rebuilds_nothing() -> None:
    found = resolved(kernel(), window(rebuilt=Rebuilt("dup", ["ends"], {"vma": "vma"})))
    assert [way.symbol for way in found.ways] == ["grow", "grow"]


def probe_object(folder: Path, name: str, **more: object) -> None:
    """A stem with one hook, `hook`, and what else is given."""
    hooks = [
        {"name": f"{name}_hook", "candidates": ["raw_tp:exit_mmap"], "note": ""}
        | more.pop("hook", {})  # type: ignore[operator]
    ]
    lines = ["title = 't'"] + [
        f"{key} = {value!r}" for key, value in more.items() if key != "hooks"
    ]
    for hook in [*hooks, *more.get("hooks", [])]:  # type: ignore[misc]
        lines.append("[[hook]]")
        lines += [
            f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
            for key, value in hook.items()
        ]
    (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")


def states(folder: Path) -> dict[str, tuple[State, str]]:
    made = Kernel("new", Btf(kernel_types()), folder, folder)
    return {
        hook.hook.name: (hook.state, hook.reason)
        for one in plan.make(made, [folder]).probe_objects
        for hook in one.hooks
    }


def test_a_stem_that_needs_another(tmp_path: Path) -> None:
    probe_object(tmp_path, "above", needs="below")
    probe_object(tmp_path, "below")
    assert {state for state, _ in states(tmp_path).values()} == {State.READY}
    probe_object(tmp_path, "below", hook={"candidates": ["raw_tp:gone"]})
    assert states(tmp_path)["above_hook"] == (State.MISSING, "needs the stem below")
    (tmp_path / "below.toml").unlink()
    assert states(tmp_path)["above_hook"] == (State.MISSING, "needs the stem below")


def test_a_hook_that_is_of_no_use_alone(tmp_path: Path) -> None:
    company = {"name": "company", "candidates": ["raw_tp:exit_mmap"], "note": "", "alone": False}
    probe_object(tmp_path, "some", hooks=[company])
    assert states(tmp_path)["company"][0] is State.READY
    probe_object(tmp_path, "some", hook={"candidates": ["fentry:gone"]}, hooks=[company])
    assert states(tmp_path)["company"] == (
        State.MISSING,
        "of no use: none of the functions it goes with can be hooked",
    )
    probe_object(tmp_path, "some", hook={"alone": False}, hooks=[company])
    assert {state for state, _ in states(tmp_path).values()} == {State.MISSING}, (
        "two that need company are none"
    )


def test_the_windows_of_the_synthetic_kernel() -> None:
    """Every program of the window stems has a way in the tests that run them natively."""
    programs = {
        point.program
        for probe_object in attach_plan().probe_objects
        if probe_object.name in ("vma", "locks", "rmap")
        for hook in probe_object.hooks
        for way in hook.ways
        for point in way.points
    }
    assert programs == set(
        "window_enter window_leave window_end vm_area_dup file_tree_step anon_tree_step commit task_exit rwsem rwsem_trying rwsem_tried "
        "contention_begin contention_end walk_enter visit".split()
    )


def test_shipped_alternatives_are_the_same_function_or_its_successor() -> None:
    """fentry and kprobe of one name stand together, in this order."""
    for hook in SHIPPED.values():
        hows = [candidate.split(":") for candidate in hook.candidates]
        names = list(dict.fromkeys(name for how, name in hows if how in ("fentry", "kprobe")))
        assert [pair for pair in hows if pair[0] in ("fentry", "kprobe")] == [
            [how, name] for name in names for how in ("fentry", "kprobe")
        ]
