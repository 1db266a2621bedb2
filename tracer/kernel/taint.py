"""The state of the machine: kernel release, taint, and command-line switches that matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TAINTS = "GFSRMBUDAWCIOELKXTNJ"
"""A letter for each bit of /proc/sys/kernel/tainted; G stands for a clear bit 0 (P).

Documentation/admin-guide/tainted-kernels.rst.
"""
_MATTER = (
    "transparent_hugepage thp_anon thp_shmem hugepages hugepagesz default_hugepagesz "
    "hugetlb_cma cma numa numa_balancing movable_node kernelcore movablecore "
    "memhp_default_state memory_hotplug page_owner page_poison debug_pagealloc init_on_alloc "
    "init_on_free slub_debug slab_debug kasan kmemleak preempt nokaslr nosmp maxcpus nr_cpus "
    "isolcpus nohz_full threadirqs zswap mem nopcid pti no5lvl rmapd_faults lsm lockdown"
).split()
"""Switches that change what memory management does."""


def taint_letters(tainted: int) -> str:
    """Return the letters that an oops shows after `Tainted:`; empty where nothing is.

    tainted: the number in /proc/sys/kernel/tainted.
    """
    letters = [
        ("P" if tainted & 1 else "G"),
        *(letter for bit, letter in enumerate(TAINTS) if bit and tainted >> bit & 1),
    ]
    return "".join(letters) if tainted else ""


def switches(command_line: str) -> list[str]:
    """Return those words of a kernel command line that change what memory management does."""
    return [
        word for word in command_line.split() if word.partition("=")[0].partition(".")[0] in _MATTER
    ]


def machine(release: str, proc: Path = Path("/proc")) -> dict[str, Any]:
    """Read taint and command line now, as a report or finding has them.

    A kernel may be tainted in the course of a run. The kernel makes up both files when they are
    read, and takes no lock that a stuck task may hold.
    """
    return {
        "kernel": release,
        "tainted": taint_letters(int(_text(proc / "sys/kernel/tainted") or 0)),
        "command_line": switches(_text(proc / "cmdline")),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
