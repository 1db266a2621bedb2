"""The attach plan on kernels that exist only as folders: which candidate, and why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.btf_blob import Blob, kernel_types
from tests.support.native import PROBES
from tracer.attach import arguments, plan, resolver
from tracer.attach.plan import Hook, HookState
from tracer.errors import RmapdError
from tracer.kernel.btf import Btf
from tracer.kernel.running import Kernel

KALLSYMS = """ffffffff81000000 T vma_expand
ffffffff81000100 t vma_merge.isra.0
ffffffff81000200 t vma_merge.cold
ffffffff81000300 t quiet_function
ffffffff81000400 t helper.constprop.0\t[module]
0000000000000000 A hidden
"""


def kernel(
    tmp_path: Path, *, kprobes: bool = True, fentry: str = "", types: bytes | None = None
) -> Kernel:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/kallsyms").write_text(KALLSYMS)
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu la57 sse\n")
    tracing = tmp_path / "sys/kernel/tracing"
    tracing.mkdir(parents=True)
    (tracing / "available_filter_functions").write_text(
        "vma_expand\nvma_merge.isra.0\nhelper.constprop.0 [module]\n"
    )
    if kprobes:
        (tmp_path / "sys/bus/event_source/devices/kprobe").mkdir(parents=True)
    if types is None:
        blob = Blob()
        vmg = blob.pointer(blob.record("vma_merge_struct", 8, []))
        blob.function("vma_expand", [vmg])
        blob.function("quiet_function", [])
        mm, char, boolean = (
            blob.pointer(blob.record("mm_struct", 8, [])),
            blob.integer("char", 1),
            blob.integer("bool", 1),
        )
        blob.tracepoint("mmap_lock_released", [mm, blob.pointer(char), boolean])
        types = blob.bytes()
    return Kernel(
        "6.1-test", Btf(types), tmp_path / "sys", tmp_path / "proc", lambda _types: fentry
    )


def one(k: Kernel, *candidates: str, **args: str) -> plan.PlannedHook:
    return resolver.resolve_hook(k, "test", Hook("hook", list(candidates), "note", args))


def test_first_candidate_that_exists_is_taken(tmp_path: Path) -> None:
    k = kernel(tmp_path)
    assert (one(k, "fentry:vma_expand").state, one(k, "fentry:vma_expand").symbol) == (
        HookState.READY,
        "vma_expand",
    )
    found = one(k, "fentry:gone", "kprobe:vma_expand")
    assert (found.how, found.methods[0].instead) == ("kprobe", "instead of fentry:gone")
    assert found.attached(0).state is HookState.SUBSTITUTED
    both = one(k, "fentry:vma_expand", "kprobe:vma_expand")
    assert [method.how for method in both.methods] == ["fentry", "kprobe"]
    assert both.attached(1).state is HookState.ATTACHED, (
        "the same function by other means is no substitute"
    )


def test_clone_is_a_substitute_for_its_function(tmp_path: Path) -> None:
    k = kernel(tmp_path)
    found = one(k, "kprobe:vma_merge")
    assert (found.symbol, found.methods[0].instead) == ("vma_merge.isra.0", "clone of vma_merge")
    assert one(k, "kprobe:helper").symbol == "helper.constprop.0"
    assert k.clones("vma_merge") == ["vma_merge.isra.0"], "a .cold part is no entry of the function"


def test_missing_hook_has_a_reason_for_each_candidate(tmp_path: Path) -> None:
    k = kernel(tmp_path)
    found = one(k, "fentry:nothing", "kprobe:nothing", "raw_tp:nothing", "iter:nothing")
    assert found.state is HookState.MISSING
    for part in (
        "BTF",
        "no symbol nothing",
        "no raw tracepoint nothing",
        "no BPF iterator over nothing",
    ):
        assert part in found.reason


def test_notrace_function_is_denied(tmp_path: Path) -> None:
    k = kernel(tmp_path)
    for candidate in ("fentry:quiet_function", "kprobe:quiet_function"):
        assert (one(k, candidate).state, one(k, candidate).reason) == (
            HookState.DENIED,
            "quiet_function is notrace",
        )


def test_hook_is_denied_where_the_kernel_refuses_every_method(tmp_path: Path) -> None:
    k = kernel(tmp_path, kprobes=False, fentry="EPERM")
    found = one(k, "fentry:vma_expand", "kprobe:vma_expand")
    assert found.state is HookState.DENIED
    assert found.reason == "EPERM; this kernel is built without CONFIG_KPROBES"


def test_window_that_cannot_be_rebuilt_has_the_reason(tmp_path: Path) -> None:
    """forks.toml: no candidate but the calls around it."""
    rebuilt = plan.Rebuilt("vma_expand", ["nothing"])
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    found = resolver.resolve_hook(
        kernel(tmp_path / "1"), "x", Hook("fork", [], "", {}, rebuilt=rebuilt)
    )
    assert found.state is HookState.MISSING
    assert "no symbol nothing" in found.reason
    refused = resolver.resolve_hook(
        kernel(tmp_path / "2", kprobes=False, fentry="EPERM"),
        "x",
        Hook("fork", [], "", {}, rebuilt=rebuilt),
    )
    assert refused.state is HookState.DENIED
    assert "EPERM" in refused.reason


def test_tracepoint_argument_is_found_by_type_on_each_kernel(tmp_path: Path) -> None:
    """6.1 passes memcg_path between mm and write; 6.18 does not."""
    old, new = kernel(tmp_path), Kernel("new", Btf(kernel_types()), tmp_path, tmp_path)
    hook = Hook("released", ["raw_tp:mmap_lock_released"], "", {"write": "bool#1"})
    indexes = [
        resolver.tracepoint_indexes(k, resolver.resolve_hook(k, "x", hook)) for k in (old, new)
    ]
    assert indexes == ["#define ARG_released_write 2\n", "#define ARG_released_write 1\n"]


def test_hook_is_missing_where_the_tracepoint_lacks_an_argument(tmp_path: Path) -> None:
    found = one(kernel(tmp_path), "raw_tp:mmap_lock_released", success="bool#2")
    assert found.state is HookState.MISSING
    assert "has no success (bool#2)" in found.reason


def test_unknown_kind_of_candidate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RmapdError, match="unknown candidate 'uprobe:x'"):
        one(kernel(tmp_path), "uprobe:x")


def test_missing_member_costs_only_the_hooks_of_its_probe_object(tmp_path: Path) -> None:
    k = Kernel("new", Btf(kernel_types()), tmp_path, tmp_path)
    folder = tmp_path / "probes"
    folder.mkdir()
    (folder / "extra.toml").write_text(
        'title = "t"\n[types]\n"mm_struct.pgd" = ["mm_struct.dgp"]\n'
        '[[hook]]\nname = "h"\ncandidates = ["raw_tp:exit_mmap"]\nnote = ""\n'
    )
    made = resolver.make_plan(k, [PROBES, folder])
    states = {
        hook.hook.name: hook for probe_object in made.probe_objects for hook in probe_object.hooks
    }
    assert states["h"].state is HookState.MISSING
    assert "mm_struct.dgp" in states["h"].reason
    assert states["exit_mmap"].state is HookState.READY
    assert "u64 pgd" in made.header


def test_symbol_that_exists_nowhere_costs_only_its_own_hook(tmp_path: Path) -> None:
    """The plan entry of tests/fixtures names one: its absence must cost nothing but itself."""
    k = Kernel("new", Btf(kernel_types()), tmp_path, tmp_path)
    made = resolver.make_plan(k, [PROBES, Path(__file__).parents[2] / "fixtures"])
    states = {
        hook.hook.name: hook.state
        for probe_object in made.probe_objects
        for hook in probe_object.hooks
    }
    assert states.pop("never_there") is HookState.MISSING
    assert HookState.READY in states.values()


@pytest.mark.parametrize("text", ["title = 3", 'title = "x"\nhok = []', "not toml at all ["])
def test_unreadable_plan_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(RmapdError, match=r"bad\.toml"):
        plan.read_probe_object(tmp_path / "bad.toml")


def test_every_shipped_hook_has_a_note_and_programs() -> None:
    for path in sorted(PROBES.glob("*.toml")):
        probe_object = plan.read_probe_object(path)
        assert path.with_suffix(".bpf.c").exists()
        assert all(hook.note for hook in probe_object.hook)


def test_argument_behind_a_void_pointer_is_found_by_the_struct_it_names() -> None:
    """6.1 passes the source folio itself; from 6.12 on it is a member of what `arg` points to."""
    wanted = {"src": "old | arg:rmap_walk_arg.folio | arg:rmap_walk_arg.src?"}
    new = arguments.find(Btf(kernel_types()), "remove_migration_pte", wanted)
    assert (new.arguments["src"], new.lacking) == (arguments.Argument(3, 8), ())
    old = Blob()
    old.function(
        "remove_migration_pte",
        {
            "folio": old.pointer(),
            "vma": old.pointer(),
            "addr": old.integer("u64", 8),
            "old": old.pointer(),
        },
    )
    assert arguments.find(Btf(old.bytes()), "remove_migration_pte", wanted).arguments[
        "src"
    ] == arguments.Argument(3)
    other = Blob()
    other.function("remove_migration_pte", {"arg": other.pointer()})
    assert arguments.find(
        Btf(other.bytes()), "remove_migration_pte", wanted
    ) == arguments.Signature(1, False, "arg", {}, ())
