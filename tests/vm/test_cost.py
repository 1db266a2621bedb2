"""What rmapd adds to a load in instructions does not grow unseen.

The ratios of a guest differ by two percent at most from run to run, however busy the machine is.
"""

from __future__ import annotations

from tests.vm.cost import kept, measure, ratio

KERNEL = "6.1"
LOADS = ("map", "merge", "protect", "brk", "move", "fork", "exec")
DEARER = 0.05
"""By how much `full` may be dearer than the kept figure before this fails."""


def test_full_is_not_dearer_than_the_kept_figures() -> None:
    """Ratios to the same load without rmapd are compared: the suite's kernel gets updates."""
    before = kept()[KERNEL].counts
    now = measure(KERNEL, LOADS, ["full"], 1).counts
    dearer = {}
    for load in LOADS:
        was, is_now = (ratio(counts[load], "full") for counts in (before, now))
        print(f"{load}: full takes {is_now:.3f} times the instructions, {was:.3f} kept")
        if is_now > was * (1 + DEARER):
            dearer[load] = f"{was:.3f} -> {is_now:.3f}"
    assert not dearer, "python -m tests.vm.cost tells which functions; --keep keeps new figures"
