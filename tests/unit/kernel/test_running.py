"""Facts of kernels that exist only as folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.btf_blob import Blob, kernel_types
from tracer.kernel.btf import Btf
from tracer.kernel.running import Kernel


@pytest.mark.parametrize("flags", ["fpu la57 sse", "fpu sse"])
def test_five_level_paging_is_read_from_the_cpus_flags(tmp_path: Path, flags: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    kernel = Kernel("test", Btf(Blob().bytes()), tmp_path, tmp_path)
    assert kernel.five_level_paging == ("la57" in flags)


@pytest.mark.parametrize(
    ("mode", "members", "trusted"),
    [
        ("full", (), False),
        ("full", ("perf_event",), False),
        ("full", ("perf_event", "kprobe_multi"), True),
        ("voluntary", (), True),
    ],
)
def test_kprobes_that_leave_out_runs_without_a_count_are_not_trusted(
    tmp_path: Path, mode: str, members: tuple[str, ...], trusted: bool
) -> None:
    """6.1 with preempt=full: a healthy kernel was accused for visits that were not seen.

    See tests/unit/invariants/test_migration_walks.py. 6.6.59 has perf_event.kprobe.missed, by the
    backport of 3acf8ace6823, and not the count of dd8657894c11.
    """
    blob = Blob()
    u64 = blob.integer("unsigned long long", 8)
    kprobe = blob.record("", 8, [("missed", u64, 0)] if "perf_event" in members else [])
    perf_event = blob.record(
        "", 8, [("", blob.record("", 8, [("kprobe", kprobe, 0)], union=True), 0)]
    )
    multi = blob.record("", 8, [("missed", u64, 0)] if "kprobe_multi" in members else [])
    kinds = blob.record("", 8, [("perf_event", perf_event, 0), ("kprobe_multi", multi, 0)], True)
    blob.record("bpf_link_info", 8, [("", kinds, 0)])
    made = Kernel("test", Btf(blob.bytes()), tmp_path, tmp_path, lambda _types: "")
    (tmp_path / "bus/event_source/devices/kprobe").mkdir(parents=True)
    (tmp_path / "kernel/debug/sched").mkdir(parents=True)
    (tmp_path / "kernel/debug/sched/preempt").write_text(
        "none voluntary full\n".replace(mode, f"({mode})")
    )
    assert (made.kprobe_refused == "") is trusted
    assert trusted or "before 6.7" in made.kprobe_refused


def test_preempt_rt_is_known_by_its_version_and_preempts(tmp_path: Path) -> None:
    """Its kernels up to 6.12 have no file with the preemption model."""
    version = "#1 SMP PREEMPT_RT Debian 6.1.192-3 (2026-11-19)"
    made = Kernel("test", Btf(kernel_types()), tmp_path, tmp_path, version=version)
    (tmp_path / "bus/event_source/devices/kprobe").mkdir(parents=True)
    assert made.realtime
    assert made.preempts
    assert made.kprobe_refused.endswith("what it leaves out of kprobes"), "no way to boot it else"
    version = version.replace("_RT", "_DYNAMIC")
    other = Kernel("test", Btf(kernel_types()), tmp_path, tmp_path, version=version)
    assert (other.realtime, other.preempts) == (False, False)


DYNAMIC = "#1 SMP PREEMPT_DYNAMIC Debian"


@pytest.mark.parametrize(
    ("version", "debugfs", "cmdline", "configuration", "expected"),
    [
        ("#1 SMP PREEMPT_RT Debian", "", "", "", "rt"),
        ("#1 SMP PREEMPT Debian", "", "", "", "full"),
        ("#1 SMP Debian", "", "preempt=full", "CONFIG_PREEMPT=y", "none"),
        (DYNAMIC, "none voluntary full (lazy)\n", "preempt=none", "", "lazy"),
        (DYNAMIC, "(none) voluntary full\n", "", "CONFIG_PREEMPT=y", "none"),
        (DYNAMIC, "", "quiet preempt=voluntary ro", "CONFIG_PREEMPT=y", "voluntary"),
        (DYNAMIC, "", "quiet", "CONFIG_PREEMPT_LAZY=y\nCONFIG_PREEMPT_DYNAMIC=y\n", "lazy"),
        (DYNAMIC, "", "", "CONFIG_PREEMPT=y\n", "full"),
        (DYNAMIC, "", "", "# CONFIG_PREEMPT is not set\nCONFIG_PREEMPT_BUILD=y\n", ""),
        (DYNAMIC, "", "", "", ""),
    ],
)
def test_preemption_is_read_where_the_kernel_tells_it(
    tmp_path: Path, version: str, debugfs: str, cmdline: str, configuration: str, expected: str
) -> None:
    """From 6.18 a kernel may be built to preempt lazily and have no file in debugfs."""
    for path, text in (
        ("sys/kernel/debug/sched/preempt", debugfs),
        ("proc/cmdline", cmdline),
        ("boot/config-6.18.1", configuration),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if text:
            (tmp_path / path).write_text(text)
    sys, proc = tmp_path / "sys", tmp_path / "proc"
    made = Kernel("6.18.1", Btf(kernel_types()), sys, proc, version=version)
    assert made.preemption == expected
    assert made.preempts is (expected in ("rt", "full", "lazy"))


@pytest.mark.parametrize(("delay", "slowly"), [("125", True), ("0", False), (None, False)])
def test_kernel_that_removes_kprobes_slowly_is_known_by_rcu(
    tmp_path: Path, delay: str | None, slowly: bool
) -> None:
    place = tmp_path / "module/rcupdate/parameters"
    place.mkdir(parents=True)
    if delay:
        (place / "rcu_task_ipi_delay").write_text(delay + "\n")
    assert Kernel("test", Btf(kernel_types()), tmp_path, tmp_path).detaches_slowly is slowly


@pytest.mark.parametrize(
    ("functions", "kprobe", "refused"),
    [
        (["fprobe_ftrace_entry"], "", ""),
        (["fprobe_entry"], "", "this kernel has no fprobe that reaches entries by ftrace"),
        (["fprobe_ftrace_entry"], "no kprobes", "no kprobes"),
    ],
)
def test_fprobe_is_used_where_it_reaches_entries_by_ftrace(
    tmp_path: Path, functions: list[str], kprobe: str, refused: str
) -> None:
    blob = Blob()
    for name in functions:
        blob.function(name, {}, blob.integer("int", 4))
    made = Kernel("test", Btf(blob.bytes()), tmp_path, tmp_path)
    made.kprobe_refused = kprobe
    assert made.fprobe_refused == refused


TWO_NODES = """Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 0
  pages free     3840
        spanned  4095
        present  3998
  start_pfn:           1
Node 0, zone    DMA32
        spanned  520159
  start_pfn:           4096
Node 0, zone   Normal
        spanned  0
Node 0, zone  Movable
        spanned  0
Node 0, zone   Device
        spanned  0
Node 1, zone      DMA
        spanned  0
Node 1, zone    DMA32
        spanned  0
Node 1, zone   Normal
        spanned  524288
        present  524288
  start_pfn:           1048576
Node 1, zone  Movable
        spanned  0
"""
"""/proc/zoneinfo of 6.1.192 with two nodes: empty zones have no start_pfn."""


@pytest.mark.parametrize(
    ("zoneinfo", "end"), [(TWO_NODES, 0x180000000), ("", 0), ("Node 0, zone DMA\n", 0)]
)
def test_end_of_ram_is_that_of_the_last_zone_with_pages(
    tmp_path: Path, zoneinfo: str, end: int
) -> None:
    """With an end that is too low, healthy objects of the second node were accused."""
    (tmp_path / "zoneinfo").write_text(zoneinfo)
    assert Kernel("test", Btf(Blob().bytes()), tmp_path, tmp_path).memory_end() == end
