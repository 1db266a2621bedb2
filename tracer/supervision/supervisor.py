"""The process that outlives the checker: it waits, and detaches what is left.

The checker is its child and shares its table of file descriptors (children.py): when the checker
dies, or is killed and cannot die, the supervisor closes what the checker attached. The results are
in memory that both have (checkpoint.py). No call here waits for the checker or reads its /proc:
where that must be read, a child does it.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tracer.errors import RmapdError
from tracer.process import children
from tracer.supervision.checkpoint import CheckpointMemory
from tracer.supervision.command import signal_name

if TYPE_CHECKING:  # the supervisor stays small
    from tracer.process.users import User

log = logging.getLogger("rmapd")

_MESSAGE_BYTES = 1 << 17
CHECKER_NAME = "rmapd-checker"
"""The checker's comm, as ps shows it."""
_SUSPICIOUS_SECONDS = 3.0
_STOPPED_SECONDS = 5.0
_STARVED = 10
"""Times `hang_seconds` without a sign of life that a checker gets which waits for a CPU."""
_TRACEBACK_SIGNAL, _TRACEBACK_SECONDS = signal.SIGUSR1, 2.0
"""Asks the checker for its Python stacks, on standard error, before it is killed."""
_DETACH_SECONDS = 30.0
_DROP_SECONDS = 10


class MessageChannel:
    """One end of a SEQPACKET socket pair; a message is msgpack of (kind, value).

    The descriptor is kept as a number: both processes share one table of descriptors (children.py).
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def pair(cls) -> tuple[MessageChannel, MessageChannel]:
        """Make two connected ends."""
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        )
        return cls(ours.detach()), cls(theirs.detach())

    def send(self, kind: str, value: object = None) -> None:
        """Send a message. The other process may be dead: that is no error.

        Raises OSError where there is no room for the message: the other process would wait for it.
        """
        try:
            os.write(self.fd, msgspec.msgpack.encode((kind, value)))
        except OSError as error:
            if error.errno in (errno.EMSGSIZE, errno.EAGAIN, errno.ENOBUFS):
                raise

    def send_error(self, error: RmapdError) -> None:
        """Send an error, for decode_error() at the other end."""
        self.send("error", (type(error).__name__, error.what, error.why, error.hint))

    def received(self) -> Iterable[tuple[str, Any]]:
        """Yield (kind, value) of each message that has arrived; never wait."""
        while True:
            try:
                raw = os.read(self.fd, _MESSAGE_BYTES)
            except BlockingIOError:
                return
            if not raw:
                return
            kind, value = msgspec.msgpack.decode(raw, type=tuple[str, Any])
            yield kind, value

    def wait_for(self, kind: str, seconds: float) -> bool:
        """Wait for a message of this kind for at most so long; others that arrive are lost."""
        poll, end = select.poll(), time.monotonic() + seconds
        poll.register(self.fd, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            if poll.poll(1000 * left) and kind in [arrived for arrived, _ in self.received()]:
                return True
        return False


class Signals:
    """Collects signals to this process; the descriptor wake_fd is readable once one has arrived.

    descriptors: its own ones, for CheckerProcess.keep_open().
    """

    def __init__(self, *numbers: int) -> None:
        self._arrived = list[int]()
        self.descriptors = self.wake_fd, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda n, _frame: self._arrived.append(n))

    def take(self) -> list[int]:
        """Return the signals since the last call, in the order of their arrival."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 64)
        arrived, self._arrived[:] = self._arrived[:], []
        return arrived


@dataclass(frozen=True)
class Death:
    """How the checker died. exit_status is None where a signal killed it, or it has not exited."""

    reason: str
    signal: str = ""
    exit_status: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the keys that it adds to `ended_early` of a report."""
        return {
            "reason": f"the checker died: {self.reason}",
            "signal": self.signal or None,
            "exit_status": self.exit_status,
        }


class CheckerProcess:
    """The checker, as its supervisor sees it.

    Set `finishing` once the checker is about to end by itself, however long that takes.
    """

    def __init__(
        self,
        process: int,
        channel: MessageChannel,
        memory: CheckpointMemory,
        hang_seconds: float,
        own: set[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch a child by its pid. own: descriptors of the supervisor, which detach() keeps."""
        self.process, self.channel, self.memory = process, channel, memory
        self.handle = os.pidfd_open(process)
        self._hang_seconds, self._own, self._clock = hang_seconds, own | {self.handle}, clock
        self._next_check, self.finishing = 0.0, False
        self._cpu_before: float | None = None  # when it became suspicious
        self._status: int | None = None
        self._last_call = self._awake_since = clock()

    def death(self) -> Death | None:
        """Return how the checker died, or None while it lives. A checker that hangs is killed.

        Read its messages after this call: a dead one may have sent some before.
        """
        if self._status is None:
            self._status = children.exit_status(self.process)
        if self._status is not None:
            killed = signal_name(-self._status) if self._status < 0 else ""
            return Death(
                f"killed by {killed}" if killed else f"exit status {self._status}",
                killed,
                self._status if not killed else None,
            )
        now = self._clock()
        if now - self._last_call > _STOPPED_SECONDS:  # both processes were stopped (Ctrl-Z)
            self._awake_since = now
        self._last_call = now
        silent = min(self.memory.silent_seconds, now - self._awake_since)
        if silent <= _SUSPICIOUS_SECONDS:
            self._cpu_before = None
        elif now >= self._next_check:
            self._next_check = now + _SUSPICIOUS_SECONDS
            thread = children.main_thread(self.process)
            if not self.finishing and thread and thread.exiting:
                self._status = children.exit_status(self.process)
                return (
                    self.death()
                    if self._status is not None
                    else Death("the kernel killed its main thread, and the process stays")
                )
            return self._hang(silent, thread)
        return None

    def _hang(self, silent: float, thread: children.MainThread | None) -> Death | None:
        """Kill a checker that hangs, and return its death.

        One that is runnable hangs if it has used so much CPU time. If it has not, it waits for a
        CPU, and dying would help nobody; but not for ever.
        """
        cpu = thread.cpu_seconds if thread else 0.0
        if self._cpu_before is None:
            self._cpu_before = cpu
        used, limit = cpu - self._cpu_before, self._hang_seconds
        if silent <= limit:
            return None
        if thread and thread.state == "R" and used < limit and silent < _STARVED * limit:
            return None
        os.kill(self.process, _TRACEBACK_SIGNAL)
        time.sleep(_TRACEBACK_SECONDS)
        os.kill(self.process, signal.SIGKILL)
        where = f", in {' < '.join(thread.functions)}" if thread and thread.functions else ""
        place = f" (state {thread.state}, {used:.0f} s of CPU{where})" if thread else ""
        return Death(f"no sign of life for {silent:.0f} s{place}")

    def keep_open(self, descriptors: Iterable[int]) -> None:
        """Add to the descriptors that detach() leaves open."""
        self._own |= {*descriptors}

    def wait(self, descriptors: Iterable[int], seconds: float) -> None:
        """Wait for a message, the end of the checker, one of these descriptors, or the timeout."""
        poll = select.poll()
        for fd in (self.channel.fd, self.handle, *descriptors):
            poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)

    def signal(self, number: int) -> None:
        """Send a signal, unless the checker is known to have exited."""
        if self._status is None:
            os.kill(self.process, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.signal(signal.SIGKILL)

    def detach(self) -> bool:
        """Close the gate, then all descriptors but our own and those of maps and programs.

        Returns False where that takes longer than 30 s. Where the kernel makes no process for it,
        this one does it.
        """
        try:
            return children.run_limited(self._close_descriptors, _DETACH_SECONDS) == 0
        except OSError:
            return self._close_descriptors() == 0

    def _close_descriptors(self) -> int:
        from tracer.bpf.maps import close_gate
        from tracer.supervision import checkpoint, takeover

        keep = set(self._own)
        try:
            if attached := checkpoint.read(self.memory).state.attached:
                record = takeover.decode(attached)
                keep |= set(record.fds)
                close_gate(record.fds[list(record.answer.maps).index("params")])
        except Exception:  # the checker may have closed its maps: what is open must be closed
            traceback.print_exc()
        last = max(keep)
        for fd, after in zip([*sorted(keep)], [*sorted(keep)[1:], last + (1 << 16)], strict=True):
            os.closerange(fd + 1, after)
        return 0

    def run_limited(self, work: Callable[[], int], stopped: Callable[[], bool]) -> int | None:
        """Run work in a child, which may die or hang as well, for hang_seconds at most.

        Returns its exit status (negative: the signal), or None where it took too long. Raises
        OSError where the kernel makes no process.
        """
        return children.run_limited(work, self._hang_seconds, stopped=stopped)

    @staticmethod
    def close_all_and_exit(code: int) -> None:
        """Close every descriptor and exit.

        A checker that cannot die would keep them open: the lock file, and our standard output.
        """
        os.closerange(0, 1 << 20)
        os._exit(code)


@dataclass(frozen=True)
class Supervised:
    """The checker's side of `rmapd run`.

    owner is the pid that users know and signal. channel leads to the supervisor; it is None under
    systemd, where there is no supervisor.
    """

    memory: CheckpointMemory
    owner: int
    channel: MessageChannel | None = None

    def end_with_supervisor(self) -> None:
        """Get SIGTERM when the supervisor dies, so that the run ends in good order.

        Call it again after a change of user: the kernel clears the parent-death signal then.
        """
        if self.channel:
            children.die_with_parent(signal.SIGTERM, self.owner)

    def report_privileges(self, user: User | None) -> None:
        """Report the capabilities that are left and the new user; the supervisor drops the same.

        user: None where it has not changed. Wait until the supervisor has dropped them: a daemon
        that says it is ready has privileges in neither process.
        """
        if self.channel:
            from pyprctl import CapState

            kept = [cap.value for cap in CapState.get_current().permitted]
            who = (user.name, user.uid, user.gid) if user else None
            self.channel.send("dropped", (kept, who))
            for _ in range(_DROP_SECONDS):
                if self.channel.wait_for("dropped", 1.0):
                    return
                self.memory.beat()
            log.warning(
                "the supervisor (pid %d) has not dropped its privileges within %d s",
                self.owner,
                _DROP_SECONDS,
            )

    def report_end(self) -> None:
        """Report that this process is about to exit on its own; its exit code gives the reason."""
        if self.channel:
            self.channel.send("done")


def decode_error(value: tuple[str, str, str, str]) -> RmapdError:
    """Make the error again that the other process passed to send_error()."""
    name, what, why, hint = value
    kind: type[RmapdError] = next(
        (kind for kind in RmapdError.__subclasses__() if kind.__name__ == name), RmapdError
    )
    return kind(what, why=why, hint=hint)


def _open_descriptors() -> set[int]:
    """List this process's descriptors, without the one that is open for the list."""
    found = set[int]()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.add(fd)
    return found


def fork_checker(
    memory: CheckpointMemory, hang_seconds: float, clock: Callable[[], float] = time.monotonic
) -> tuple[MessageChannel, CheckerProcess | None]:
    """Fork: the child is the checker and gets None, the parent is its supervisor.

    hang_seconds: without a beat for so long, the checker counts as dead. clock is in seconds.
    """
    ours, theirs = MessageChannel.pair()
    own, parent = _open_descriptors(), os.getpid()
    process = children.fork_sharing_files()
    if process:
        children.disable_numa_balancing()
        return ours, CheckerProcess(process, ours, memory, hang_seconds, own, clock)
    signal.set_wakeup_fd(-1)
    children.set_process_name(CHECKER_NAME)
    children.die_with_parent(signal.SIGKILL, parent)
    faulthandler.register(_TRACEBACK_SIGNAL)
    memory.beat()
    return theirs, None
