"""The process that outlives the judge: a small one, which touches little memory, waits, and sees to what the judge leaves behind.

The judge is its child and shares its table of file descriptors (child.py): when it dies, or is killed and cannot die, what it attached is
closed here. What it recorded is in memory that both have (checkpoint.py). No call in here waits for the judge, or asks /proc for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from tracer.errors import RmapdError
from tracer.process import children
from tracer.supervision.checkpoint import Memory
from tracer.supervision.command import signal_name

if TYPE_CHECKING:  # the supervisor stays small
    from tracer.process.privileges import User

_MESSAGE_BYTES = 1 << 17
JUDGE = "rmapd-judge"
"""As ps shows it."""
_SUSPICIOUS_SECONDS = 3.0
_ASLEEP_SECONDS = 5.0
_DETACH_SECONDS = 30.0


class SupervisorLine:
    """One end of a conversation in messages (msgpack of a kind and what it takes). The descriptor is a number: child.py says why."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def pair(cls) -> tuple[SupervisorLine, SupervisorLine]:
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        )
        return cls(ours.detach()), cls(theirs.detach())

    def say(self, kind: str, what: object = None) -> None:
        """Who is dead does not hear it."""
        with contextlib.suppress(OSError):
            os.write(self.fd, msgspec.msgpack.encode((kind, what)))

    def say_error(self, error: RmapdError) -> None:
        self.say("error", (type(error).__name__, error.what, error.why, error.hint))

    def heard(self) -> Iterable[tuple[str, Any]]:
        """Every message that has come."""
        while True:
            try:
                raw = os.read(self.fd, _MESSAGE_BYTES)
            except BlockingIOError:
                return
            if not raw:
                return
            kind, what = msgspec.msgpack.decode(raw, type=tuple[str, Any])
            yield kind, what


class Signals:
    """Signals to this process, as numbers, in their order; the descriptor `woken` can be read when one has come."""

    def __init__(self, *numbers: int) -> None:
        self._came = list[int]()
        self.woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda n, _frame: self._came.append(n))

    def taken(self) -> list[int]:
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 64)
        came, self._came[:] = self._came[:], []
        return came


@dataclass(frozen=True)
class Death:
    """What became of the judge."""

    reason: str
    signal: str = ""
    exit_status: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "reason": f"the judge died: {self.reason}",
            "signal": self.signal or None,
            "exit_status": self.exit_status,
        }


class Watched:
    """The judge, as its supervisor sees it. finishing: it is about to end by itself, however long that takes."""

    def __init__(
        self, process: int, line: SupervisorLine, memory: Memory, hang_seconds: float, own: set[int]
    ) -> None:
        self.process, self.line, self.memory = process, line, memory
        self.handle = os.pidfd_open(process)
        self._hang_seconds, self._own = hang_seconds, own | {self.handle}
        self._next_look, self._status, self.finishing = 0.0, None, False
        self._looked = self._awake_since = time.monotonic()

    _status: int | None

    def death(self) -> Death | None:
        """None while it lives. What it said before must have been heard."""
        if self._status is None:
            self._status = children.ended(self.process)
        if self._status is not None:
            killed = signal_name(-self._status) if self._status < 0 else ""
            return Death(
                f"killed by {killed}" if killed else f"exit status {self._status}",
                killed,
                self._status if not killed else None,
            )
        now = time.monotonic()
        if now - self._looked > _ASLEEP_SECONDS:  # both were stopped: its silence was ours
            self._awake_since = now
        self._looked, silent = now, min(self.memory.silent_seconds, now - self._awake_since)
        if silent > self._hang_seconds:
            os.kill(self.process, signal.SIGKILL)
            return Death(f"no sign of life for {silent:.0f} s")
        if silent > _SUSPICIOUS_SECONDS and now >= self._next_look:
            self._next_look = now + _SUSPICIOUS_SECONDS
            if not self.finishing and children.exiting(self.process):
                self._status = children.ended(self.process)
                return (
                    self.death()
                    if self._status is not None
                    else Death("the kernel killed its main thread, and the process stays")
                )
        return None

    def keep(self, descriptors: Iterable[int]) -> None:
        """These are ours, too: what the judge leaves open is closed, not they."""
        self._own |= {*descriptors}

    def wait(self, also: Iterable[int], seconds: float) -> None:
        """Until something is to be done, or this time is over."""
        poll = select.poll()
        for fd in (self.line.fd, self.handle, *also):
            poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)

    def signal(self, number: int) -> None:
        if self._status is None:
            os.kill(self.process, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def detach(self) -> bool:
        """Close the gate, and every descriptor but what is needed afterwards. False where that did not come to an end."""
        return children.limited(self._close, _DETACH_SECONDS) == 0

    def _close(self) -> int:
        from tracer.bpf.maps import close_gate
        from tracer.supervision import checkpoint, handed_down

        keep = set(self._own)
        if attached := checkpoint.read(self.memory).state.attached:
            down = handed_down.read(attached)
            close_gate(down.fds[list(down.answer.maps).index("params")])
            keep |= set(down.fds)
        last = max(keep)
        for fd, after in zip([*sorted(keep)], [*sorted(keep)[1:], last + (1 << 16)], strict=True):
            os.closerange(fd + 1, after)
        return 0

    def afterwards(self, work: Callable[[], int], stopped: Callable[[], bool]) -> int | None:
        """Do this in another process, which may die or hang as well: its exit status (negative: its signal), or None."""
        return children.limited(work, self._hang_seconds, stopped=stopped)

    @staticmethod
    def let_go(code: int) -> None:
        """End, and leave nothing open: a judge that cannot die would keep it, the lock file and who reads what we print among it."""
        os.closerange(0, 1 << 20)
        os._exit(code)


@dataclass(frozen=True)
class Supervised:
    """The judge's side of `rmapd run`. owner: the process that people know and signal. line: to a supervisor, where there is one."""

    memory: Memory
    owner: int
    line: SupervisorLine | None = None

    def survive(self) -> None:
        """From here on there is something to lose: end in good order when the supervisor dies. Once more after a change of user, which
        takes it back."""
        if self.line:
            children.die_with_parent(signal.SIGTERM, self.owner)

    def gave_up(self, who: User | None) -> None:
        """Privileges, and became `who` (None: it stayed who it was): the supervisor follows."""
        if self.line:
            from pyprctl import CapState

            kept = [cap.value for cap in CapState.get_current().permitted]
            self.line.say("dropped", (kept, (who.name, who.uid, who.gid) if who else None))

    def done(self) -> None:
        """It ends because it was asked to, or cannot go on; its exit code says which."""
        if self.line:
            self.line.say("done")


def error_of(said: tuple[str, str, str, str]) -> RmapdError:
    """What Line.say_error() said."""
    name, what, why, hint = said
    kind: type[RmapdError] = next(
        (kind for kind in RmapdError.__subclasses__() if kind.__name__ == name), RmapdError
    )
    return kind(what, why=why, hint=hint)


def _open() -> set[int]:
    """Our descriptors: not the one that lists them."""
    found = set[int]()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.add(fd)
    return found


def fork(memory: Memory, hang_seconds: float) -> tuple[SupervisorLine, Watched | None]:
    """Two processes from here on: the judge, for whom there is no Watched, and its supervisor."""
    ours, theirs = SupervisorLine.pair()
    own, parent = _open(), os.getpid()
    process = children.fork_sharing_files()
    if process:
        children.stay_on_node()
        return ours, Watched(process, ours, memory, hang_seconds, own)
    signal.set_wakeup_fd(-1)
    children.call_it(JUDGE)
    children.die_with_parent(signal.SIGKILL, parent)
    memory.beat()
    return theirs, None
