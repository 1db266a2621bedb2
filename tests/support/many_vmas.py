"""Start the workload many_vmas.py: a process with many VMAs that waits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_WORKLOAD = Path(__file__).parent.parent / "workloads/many_vmas.py"


@contextlib.contextmanager
def victim(vmas: int, forks: int = 0) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Yield the process, where its pairs of pages begin, and the address of an untouched VMA.

    It and its waiting children are killed at the exit.
    """
    process = subprocess.Popen(
        [sys.executable, str(_WORKLOAD), str(vmas), str(forks)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        base, unfaulted, _ = process.stdout.readline().split()
        yield process, int(base, 16), int(unfaulted, 16)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
