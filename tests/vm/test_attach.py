"""The whole plan is attached and detached under load without leftovers or kernel warnings."""

from __future__ import annotations

import json
import os
from itertools import pairwise

import pytest

from tests.vm.guest import run
from tests.vm.test_windows import BY_FPROBE

KERNELS = (os.environ.get("RMAPD_VM_KERNELS") or "6.1").split()
METHODS = [
    (kernel, how)
    for kernel in KERNELS
    for how in ("kprobe", "fentry", "kprobe.multi")
    if how != "kprobe.multi" or kernel in BY_FPROBE
]
ROUNDS = int(os.environ.get("RMAPD_ATTACH_ROUNDS") or 5)
"""20 take 17 minutes under emulation."""


@pytest.mark.parametrize(("kernel", "how"), METHODS)
def test_repeated_attach_and_detach_leaves_nothing_behind(kernel: str, how: str) -> None:
    result = run(
        kernel,
        f"python -m tests.vm.attach $OUT/a.json {ROUNDS} {how}",
        label=f"attach-{how}",
        one_thread="arm64" not in kernel,  # such a guest does not die (docs/KERNELS.md)
        timeout=600 + 120 * ROUNDS,
    )
    assert result.code == 0, result.output
    found = json.loads((result.folder / "a.json").read_text())
    print(
        f"\n{found['kernel']}: {found['programs']} programs by {how}, "
        f"{ROUNDS} rounds in {found['seconds']:.0f} s"
    )
    assert found["programs"] >= 100
    assert found["hooked"] >= 60, "hooked() misses attached functions"
    assert found["left"] == [0] * (ROUNDS + 1)
    assert (found["left_hooked"], found["left_programs"]) == (0, 0)
    assert len(found["runs"]) == ROUNDS
    assert all(later > earlier for earlier, later in pairwise([0, *found["runs"]])), (
        "each round's programs ran"
    )
