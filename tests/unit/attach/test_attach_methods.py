"""The methods that a hook on a function has, in order: fentry, kprobe, clones, rebuilt windows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from tests.support.btf_blob import Blob, kernel_types
from tests.support.native import PROBES, attach_plan
from tracer.attach import plan, resolver
from tracer.attach.plan import Hook, HookState, PlannedHook, Rebuilt
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
    fprobe: str = "before 6.19",
) -> Kernel:
    """Functions are those of BTF, symbols those of kallsyms; by default the same.

    fentry, fprobe: why they are refused.
    """
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
    made.kprobe_refused, made.fprobe_refused, made.preempts = "", fprobe, preempts
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


def resolved(made: Kernel, hook: Hook) -> PlannedHook:
    return resolver.resolve_hook(made, "test", hook)


def points(found: PlannedHook) -> list[list[str]]:
    return [
        [f"{point.program}@{point.how}:{point.symbol}" for point in method.points]
        for method in found.methods
    ]


def test_window_hook_has_a_program_at_entry_and_at_return() -> None:
    found = resolved(kernel(), window())
    assert points(found) == [
        ["window_enter@fentry:grow", "window_leave@fexit:grow"],
        ["window_enter@kprobe:grow", "window_leave@kretprobe:grow"],
    ]
    by_fentry, by_kprobe = (method.points for method in found.methods)
    assert [point.places for point in by_fentry] == [{"vma": 0, "returned": 16}] * 2
    assert [point.places for point in by_kprobe] == [
        {"vma": 112, "stack": 152},
        {"stack": 152, "returned": 80},
    ]
    numbers = {"window": "WINDOW_vma_expand", "returns": "RETURNS_ERRNO", "flags": "WINDOW_SHAPES"}
    assert all(point.constants == numbers for method in found.methods for point in method.points)
    assert by_kprobe[1].offsets == {"popped": 8}


def test_program_at_return_alone_gets_a_program_at_entry_by_kprobe_only() -> None:
    """An fexit program still has the arguments."""
    found = resolved(kernel(), window(window="", leave="tried", before="trying"))
    assert points(found) == [["tried@fexit:grow"], ["trying@kprobe:grow", "tried@kretprobe:grow"]]


def test_hook_without_a_window_has_one_program_at_entry() -> None:
    assert points(resolved(kernel(), window(window="", program="step"))) == [
        ["step@fentry:grow"],
        ["step@kprobe:grow"],
    ]
    assert points(resolved(kernel(), window(window=""))) == [["w@fentry:grow"], ["w@kprobe:grow"]]


def test_kprobe_is_the_only_method_where_fentry_is_refused() -> None:
    found = resolved(kernel(fentry="EPERM"), window())
    assert ([method.how for method in found.methods], found.reason, found.state) == (
        ["kprobe"],
        "EPERM",
        HookState.READY,
    )


def test_kprobes_come_first_where_programs_are_preempted() -> None:
    hook = window(rebuilt=REBUILT)
    assert [
        (method.how, method.symbol) for method in resolved(kernel(preempts=True), hook).methods
    ] == [
        ("kprobe", "grow"),
        ("kprobe", "begins"),
        ("fentry", "grow"),
        ("fentry", "begins"),
    ]


def test_entries_are_hooked_by_fprobe_before_kprobes() -> None:
    found = resolved(kernel(preempts=True, fprobe=""), window(window="", program="step"))
    assert points(found) == [
        ["step@kprobe.multi:grow"],
        ["step@kprobe:grow"],
        ["step@fentry:grow"],
    ]
    by_fprobe, by_kprobe, _ = found.methods
    assert (by_fprobe.how, by_fprobe.points[0].places) == (
        "kprobe.multi",
        {"vma": 112, "stack": 152},
    )
    assert by_fprobe.points[0].places == by_kprobe.points[0].places


def test_function_with_a_program_at_return_is_not_hooked_by_fprobe() -> None:
    """Its entry would pass two ftrace_ops, which is dearer."""
    found = resolved(kernel(preempts=True, fprobe=""), window())
    assert [method.how for method in found.methods] == ["kprobe", "fentry"]


def test_rebuilt_window_has_entries_only_and_is_hooked_by_fprobe() -> None:
    names = [name for name in BASE if name != "grow"]
    made = kernel(names, names, preempts=True, fprobe="")
    assert points(resolved(made, window(rebuilt=REBUILT)))[0] == [
        "window_enter@kprobe.multi:begins",
        "window_end@kprobe.multi:ends",
        "window_end@kprobe.multi:ends_too",
    ]


def test_other_function_of_the_candidates_is_a_substitute() -> None:
    hook = window(candidates=["fentry:gone", "kprobe:gone", "fentry:grow", "kprobe:grow"])
    found = resolved(kernel(), hook)
    assert [(method.how, method.instead) for method in found.methods] == [
        ("fentry", "instead of fentry:gone"),
        ("kprobe", "instead of fentry:gone"),
    ]
    assert "no function gone" in found.reason
    assert found.attached(1).state is HookState.SUBSTITUTED


def test_clone_is_hooked_only_where_no_argument_is_read() -> None:
    made = kernel(["grow.isra.0", "dup.constprop.0"], fentry="EPERM")
    refused = resolved(made, window())
    assert refused.state is HookState.DENIED
    assert (
        "grow.isra.0 is a clone: its arguments may be others than those of grow" in refused.reason
    )
    found = resolved(made, Hook("d", ["fentry:dup", "kprobe:dup"], ""))
    assert (points(found), found.methods[0].instead) == (
        [["d@kprobe:dup.constprop.0"]],
        "clone of dup",
    )


def test_function_itself_comes_before_its_clones() -> None:
    assert resolved(kernel(["grow.isra.0", "grow"]), window()).methods[1].symbol == "grow"


def test_hook_is_missing_where_the_function_lacks_an_argument() -> None:
    found = resolved(kernel(), window(args={"vma": "vma", "end": "end"}))
    assert (found.state, found.methods) == (HookState.MISSING, ())
    assert found.reason == "grow(vma, start) has no end (end)"


def test_rebuilt_window_is_the_last_method() -> None:
    found = resolved(kernel(), window(rebuilt=REBUILT))
    assert points(found)[2:] == [
        ["window_enter@fentry:begins", "window_end@fentry:ends", "window_end@fentry:ends_too"],
        ["window_enter@kprobe:begins", "window_end@kprobe:ends", "window_end@kprobe:ends_too"],
    ]
    method = found.methods[2]
    assert method.instead == "rebuilt: from begins to ends or ends_too"
    assert method.points[0].constants["flags"] == "WINDOW_SHAPES | WINDOW_REBUILT"
    assert method.points[0].places == {"vma": 0, "returned": 8}
    assert method.points[1].constants["window"] == "WINDOW_vma_expand"
    assert found.attached(2).state is HookState.SUBSTITUTED


def test_rebuilt_window_without_flags_gets_the_flag_rebuilt() -> None:
    (_, _, method, _) = resolved(kernel(), window(constants={}, rebuilt=REBUILT)).methods
    assert method.points[0].constants["flags"] == "0 | WINDOW_REBUILT"


@pytest.mark.parametrize("without", ["begins", "ends", "ends_too"])
def test_window_is_not_rebuilt_where_a_surrounding_function_is_missing(without: str) -> None:
    names = [name for name in BASE if name not in (without, "grow")]
    found = resolved(kernel(names, names), window(rebuilt=REBUILT))
    assert (found.state, found.methods) == (HookState.MISSING, ())


@pytest.mark.parametrize("clone", ["begins.isra.0", "ends.part.0"])
def test_window_is_not_rebuilt_from_clones(clone: str) -> None:
    """It may stand for some of the calls only, and is not the symbol that would be attached to."""
    names = [clone if clone.startswith(f"{name}.") else name for name in BASE if name != "grow"]
    found = resolved(
        kernel(names, [name for name in names if "." not in name]), window(rebuilt=REBUILT)
    )
    assert found.methods == ()


def test_window_is_not_rebuilt_where_its_beginning_lacks_an_argument() -> None:
    found = resolved(kernel(), window(rebuilt=Rebuilt("dup", ["ends"], {"vma": "vma"})))
    assert [method.symbol for method in found.methods] == ["grow", "grow"]


def probe_object(folder: Path, name: str, **more: object) -> None:
    """Write a probe object with one hook, `hook`, and what else is given."""
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


def states(folder: Path) -> dict[str, tuple[HookState, str]]:
    made = Kernel("new", Btf(kernel_types()), folder, folder)
    return {
        hook.hook.name: (hook.state, hook.reason)
        for one in resolver.make_plan(made, [folder]).probe_objects
        for hook in one.hooks
    }


def test_probe_object_is_missing_where_the_one_it_needs_is_unusable(tmp_path: Path) -> None:
    probe_object(tmp_path, "above", needs="below")
    probe_object(tmp_path, "below")
    assert {state for state, _ in states(tmp_path).values()} == {HookState.READY}
    probe_object(tmp_path, "below", hook={"candidates": ["raw_tp:gone"]})
    assert states(tmp_path)["above_hook"] == (HookState.MISSING, "needs the probe object below")
    (tmp_path / "below.toml").unlink()
    assert states(tmp_path)["above_hook"] == (HookState.MISSING, "needs the probe object below")


def test_accompanying_hook_is_missing_where_no_other_hook_can_be_attached(tmp_path: Path) -> None:
    company = {"name": "company", "candidates": ["raw_tp:exit_mmap"], "note": "", "alone": False}
    probe_object(tmp_path, "some", hooks=[company])
    assert states(tmp_path)["company"][0] is HookState.READY
    probe_object(tmp_path, "some", hook={"candidates": ["fentry:gone"]}, hooks=[company])
    assert states(tmp_path)["company"] == (
        HookState.MISSING,
        "of no use: none of the functions it goes with can be hooked",
    )
    probe_object(tmp_path, "some", hook={"alone": False}, hooks=[company])
    assert {state for state, _ in states(tmp_path).values()} == {HookState.MISSING}, (
        "two that need company are none"
    )


def test_synthetic_kernel_has_a_method_for_every_window_program() -> None:
    """Every window program can be run natively by the unit tests."""
    programs = {
        point.program
        for probe_object in attach_plan().probe_objects
        if probe_object.name in ("vma", "locks", "rmap")
        for hook in probe_object.hooks
        for method in hook.methods
        for point in method.points
    }
    assert programs == set(
        "window_enter window_leave window_end vm_area_dup file_tree_step anon_tree_step commit "
        "task_exit rwsem rwsem_trying rwsem_tried contention_begin contention_end walk_enter "
        "visit keeping_enter keeping_leave".split()
    )


def test_shipped_candidates_pair_fentry_and_kprobe_of_one_function() -> None:
    """fentry and kprobe of one name stand together, in this order."""
    for hook in SHIPPED.values():
        hows = [candidate.split(":") for candidate in hook.candidates]
        names = list(dict.fromkeys(name for how, name in hows if how in ("fentry", "kprobe")))
        assert [pair for pair in hows if pair[0] in ("fentry", "kprobe")] == [
            [how, name] for name in names for how in ("fentry", "kprobe")
        ]
