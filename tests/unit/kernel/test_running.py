"""Facts of kernels that exist only as folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.btf_blob import Blob
from tracer.kernel.btf import Btf
from tracer.kernel.running import Kernel


@pytest.mark.parametrize("flags", ["fpu la57 sse", "fpu sse"])
def test_five_level_paging_is_read_from_the_cpus_flags(tmp_path: Path, flags: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    kernel = Kernel("test", Btf(Blob().bytes()), tmp_path, tmp_path)
    assert kernel.five_level_paging == ("la57" in flags)


@pytest.mark.parametrize(
    ("mode", "counts", "trusted"),
    [("full", False, False), ("full", True, True), ("voluntary", False, True)],
)
def test_kprobes_that_leave_out_runs_without_a_count_are_not_trusted(
    tmp_path: Path, mode: str, counts: bool, trusted: bool
) -> None:
    """6.1 with preempt=full: a healthy kernel was accused for visits that were not seen.

    See tests/unit/invariants/test_migration_walks.py.
    """
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
