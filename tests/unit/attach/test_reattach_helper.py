"""The capabilities that the reattach helper keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyprctl import Cap

from tracer.attach.reattach_helper import needed_capabilities


@pytest.mark.parametrize(
    ("paranoid", "methods", "more"),
    [
        ("2", {"fentry", "kprobe"}, set()),
        ("3", {"fentry", "raw_tp", "kprobe.multi"}, set()),
        ("3", {"kretprobe", "kprobe"}, {Cap.SYS_ADMIN}),
    ],
)
def test_sys_admin_is_needed_only_for_kprobes_on_a_paranoid_kernel(
    tmp_path: Path, paranoid: str, methods: set[str], more: set[Cap]
) -> None:
    (tmp_path / "perf_event_paranoid").write_text(f"{paranoid}\n")
    assert (
        needed_capabilities(methods, tmp_path / "perf_event_paranoid")
        == {Cap.BPF, Cap.PERFMON} | more
    )
