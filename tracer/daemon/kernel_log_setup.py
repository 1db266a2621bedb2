"""Open the kernel's log for K1, or find out why it cannot be read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tracer.daemon.levels import AUDIT_ONLY
from tracer.kernel.kernel_log import KMSG, KernelLog


@contextlib.contextmanager
def open_kernel_log(level: str, clock: Callable[[], int]) -> Iterator[KernelLog | str]:
    """Yield the reader of what is printed from now on, or why there is none; close it at the exit.

    level: of fidelity; `rmapd audit` reads no log. Call it while the capabilities of attaching are
    there: opening needs CAP_SYSLOG, reading does not.
    """
    if level == AUDIT_ONLY:
        yield "an audit does not read the kernel's log"
        return
    try:
        kernel_log = KernelLog.open(clock)
    except OSError as error:
        yield f"{KMSG}: {error.strerror}"
        return
    with contextlib.closing(kernel_log):
        yield kernel_log
