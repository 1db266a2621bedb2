"""A rival: a typical BCC script, in which each hook sends an event to a Python callback.

The consumer is a separate process and uses bpf_new_ringbuf() and bpf_poll_ringbuf() of libbcc, as
bcc.BPF.ring_buffer_poll() does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import time
from collections.abc import Iterator, Mapping

from tests.bench.variants import Attachable, Nothing
from tracer.attach.attached import AttachedProbes
from tracer.daemon.probes import probes_folder
from tracer.tables.c_structs import Layouts
from tracer.tables.counters import Counters

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)


class RingRival(Attachable):
    """The programs, and the process that consumes their events."""

    PROGRAM = """HOOK({program}) {{
      u64 *e = events.ringbuf_reserve(48);
      u32 n = 0, zero = 0;
      u64 *sent = counters.lookup(&zero);
      if (sent) *sent += 1;
      if (!e) {{ count(EVIDENCE_LOST); return 0; }}
      u64 task = bpf_get_current_pid_tgid();
      e[0] = bpf_ktime_get_ns();
      e[1] = task;
      e[2] = {number};
      bpf_probe_read_kernel(&e[3], 24, ctx);
      events.ringbuf_submit(e, 0);
      return 0;
    }}
    """

    def __init__(self, loaded: AttachedProbes) -> None:
        super().__init__("bcc", loaded)
        self._child = 0

    @contextlib.contextmanager
    def on(self) -> Iterator[Nothing]:
        self._child = os.fork()
        if not self._child:
            self._consume()
        time.sleep(0.2)
        with super().on():
            yield self
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        self._child = 0

    def _consume(self) -> None:
        """Consume events in the child until SIGKILL."""
        library = ctypes.CDLL("libbcc.so.0")
        library.bpf_new_ringbuf.restype = ctypes.c_void_p
        received = 0

        def event(_context: int, at: int, size: int) -> int:
            nonlocal received
            fields = struct.unpack("<6Q", ctypes.string_at(at, 48))
            received += bool(fields[0])
            return 0

        callback = _CALLBACK(event)
        manager = library.bpf_new_ringbuf(self._loaded.maps["events"].fd, callback, None)
        while True:
            library.bpf_poll_ringbuf(ctypes.c_void_p(manager), 100)

    def cpu_seconds(self) -> float:
        return time.clock_gettime(~self._child << 3 | 2) if self._child else 0.0

    def facts(self) -> Mapping[str, object]:
        layouts = Layouts.read(probes_folder() / "include/shared.h")
        counters = Counters(self._loaded.maps, layouts).read()
        return {
            **super().facts(),
            "sent": counters[layouts.enums["counter"][0]],
            "lost": counters["EVIDENCE_LOST"],
        }
