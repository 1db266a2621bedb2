"""The capabilities that the reattach helper keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyprctl import Cap

from tracer.attach.reattach_helper import needed_capabilities


@pytest.mark.parametrize(
    ("paranoid", "methods", "statistics", "more"),
    [
        ("2", {"fentry", "kprobe"}, False, set()),
        ("3", {"fentry", "raw_tp", "kprobe.multi"}, False, set()),
        ("3", {"kretprobe", "kprobe"}, False, {Cap.SYS_ADMIN}),
        ("2", {"raw_tp"}, True, {Cap.SYS_ADMIN}),
    ],
)
def test_sys_admin_is_needed_only_for_statistics_and_kprobes_on_a_paranoid_kernel(
    tmp_path: Path, paranoid: str, methods: set[str], statistics: bool, more: set[Cap]
) -> None:
    (tmp_path / "perf_event_paranoid").write_text(f"{paranoid}\n")
    assert (
        needed_capabilities(
            methods, statistics=statistics, paranoid=tmp_path / "perf_event_paranoid"
        )
        == {Cap.BPF, Cap.PERFMON} | more
    )
