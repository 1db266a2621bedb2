"""A workload for a guest with rmapd_state loaded: corrupt a sleeping process, fault by fault.

usage: state_faults.py SECONDS [FAULT...]     (root; each fault stays for SECONDS)

Prints one JSON line per fault: its name, when it was made, when it was undone, the process and the
address.
"""

from __future__ import annotations

import errno
import json
import mmap
import sys
import time
from pathlib import Path

from tests.support.many_vmas import victim

CORRUPT = Path("/sys/module/rmapd_state/parameters/corrupt")
PAGE = mmap.PAGESIZE
FAULTS = (
    *("gap_large", "gap_small", "pivot_off", "parent_stale", "vma_missing", "count_off"),
    *("chain_outside", "subtree_end", "file_missing", "anon_unchained"),
    "index_off",
)
SPACE = 3.0
"""Seconds between two faults: what is found until the next one belongs to the one before."""
_VMAS, _FORKS = 600, 2
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _places(fault: str, process: int, base: int, unfaulted: int) -> list[int]:
    """Return addresses at which a fault may be made; the module takes the first that suits it."""
    if fault == "anon_unchained":
        return [unfaulted]
    if fault == "file_missing":
        maps = Path(f"/proc/{process}/maps").read_text().splitlines()
        return [int(line.split("-")[0], 16) for line in maps if "(deleted)" in line][3:]
    pairs = range(base + 4 * PAGE * 100, base + 4 * PAGE * 200, 4 * PAGE)
    return [pair + PAGE for pair in pairs]


def _corrupt(fault: str, process: int, places: list[int]) -> int:
    """Make the fault and return its address. Raises OSError if no place suits it."""
    for place in places:
        try:
            CORRUPT.write_text(f"{fault} {process} {place:x}")
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return place
    raise OSError(errno.EINVAL, f"no place suits {fault}")


def main(seconds: float, faults: list[str]) -> None:
    if _HUGE_PAGES.exists():  # else khugepaged walks the corrupt tree, and oopses
        _HUGE_PAGES.write_text("never")
    with victim(_VMAS, _FORKS) as (process, base, unfaulted):
        time.sleep(SPACE)
        for fault in faults or FAULTS:
            made = time.time()
            place = _corrupt(fault, process.pid, _places(fault, process.pid, base, unfaulted))
            time.sleep(seconds)
            CORRUPT.write_text("undo")
            report = {"name": fault, "made": made, "undone": time.time()}
            print(
                "fault " + json.dumps({**report, "pid": process.pid, "address": hex(place)}),
                flush=True,
            )
            time.sleep(SPACE)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
