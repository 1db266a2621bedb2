"""What runs in the kernel, held by file descriptors: maps, programs, and where each is attached."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from tracer.attach.liveness import Attachment
from tracer.attach.plan import HookState, PlannedHook
from tracer.attach.reattach_helper import ProgramTarget, ReattachHelper
from tracer.bpf.links import IteratorLink, Link
from tracer.bpf.maps import Map
from tracer.bpf.programs import Program, RunStatistics, enable_statistics
from tracer.bpf.ring_buffer import RingBuffer
from tracer.errors import RmapdError
from tracer.process.users import User

_BY_KPROBE = ("kprobe", "kretprobe")
_AT_ONCE = 4
"""Kprobes that are removed at the same time, each by a thread; systemd allows the daemon 32."""


def _nothing() -> None:
    """Do nothing."""


@dataclass
class AttachedProgram:
    """A loaded program and its target.

    link: its attachment there, None while it has none. missed_before: calls that earlier links left
    out.
    """

    program: Program
    how: str
    symbol: str
    link: Link | None = None
    missed_before: int = 0

    def missed_by_links(self) -> int:
        """Read how many calls the kernel left out before they reached the program."""
        return self.missed_before + (self.link.missed() if self.link else 0)

    def statistics(self) -> RunStatistics:
        """Read what the kernel counted of the program and of its links."""
        counted = self.program.statistics()
        return replace(counted, missed=counted.missed + self.missed_by_links())

    def missed(self) -> int:
        """Read how many runs the kernel left out, wherever it counts them."""
        return self.program.missed() + self.missed_by_links()

    def detach(self) -> None:
        """Detach the program, and keep what its link counted."""
        if self.link:
            try:
                self.missed_before += self.link.missed()
            finally:
                self.link.close()
                self.link = None


def attach_all(points: Sequence[AttachedProgram], helper: ReattachHelper | None = None) -> None:
    """Attach the programs of one hook, the one at a function's return first.

    In this order no window is opened by a call whose return is not seen. helper: the process that
    attaches in our place. Raises OSError where one program is refused; none is attached then.
    """
    try:
        for point in reversed(points):
            if helper and point.how != "run":
                point.link = helper.attach(point.program)
            else:
                point.link = point.program.attach(point.how, point.symbol)
    except OSError:
        detach_all(points)
        raise


def detach_all(*hooks: Sequence[AttachedProgram], closed: Callable[[], None] = _nothing) -> None:
    """Detach the programs of hooks, of each the one at a function's entry first.

    closed: called after each kprobe, which takes long on PREEMPT_RT.
    """
    for part in ([points[0] for points in hooks if points], [p for ps in hooks for p in ps[1:]]):
        _close_links(
            [point.link for point in part if point.link and point.how in _BY_KPROBE], closed
        )
        for point in part:
            if point.how in _BY_KPROBE:
                point.link = None
            else:
                point.detach()


def _close_links(links: Sequence[Link], closed: Callable[[], None]) -> None:
    """Close the links of kprobes, some at once.

    At each of them the kernel waits for three grace periods, one of them with event_mutex held
    (docs/KERNELS.md, "PREEMPT_RT"). Tasks that wait at the same time share the others.
    """
    if len(links) < 2:
        for link in links:
            link.close()
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(links)), "rmapd-detach") as threads:
        for _ in threads.map(lambda link: link.close(), links):
            closed()


def close_all(*hooks: Sequence[AttachedProgram], closed: Callable[[], None] = _nothing) -> None:
    """Detach the programs of hooks, as detach_all() does, and unload them."""
    detach_all(*hooks, closed=closed)
    for point in (point for points in hooks for point in points):
        point.program.close()


@dataclass
class AttachedProbes:
    """Owns maps, programs and links; the kernel frees them when the process exits.

    hooks: of the whole plan, as they stand now. maps: by name. points: hook -> its programs.
    statistics_fd: makes the kernel count run times while it is open; -1 while it does not.
    reattach_helper: attaches paused hooks again and switches statistics on, where this process has
    no privilege to do so. closed: called now and then while hooks are detached, so that it does not
    look like a hang. origin: where the programs are from.
    """

    hooks: list[PlannedHook] = field(default_factory=list)
    maps: dict[str, Map] = field(default_factory=dict)
    points: dict[str, list[AttachedProgram]] = field(default_factory=dict)
    statistics_fd: int = -1
    reattach_helper: ReattachHelper | None = None
    closed: Callable[[], None] = _nothing
    origin: str = ""

    @property
    def programs(self) -> dict[str, list[Program]]:
        """The loaded programs of each hook, entry before return."""
        return {name: [point.program for point in points] for name, points in self.points.items()}

    def iterator(self, name: str) -> IteratorLink | None:
        """Return the iterator of a hook; None where it is not attached."""
        links = (point.link for point in self.points.get(name, ()))
        return next((link for link in links if isinstance(link, IteratorLink)), None)

    def attached(self) -> frozenset[str]:
        """Return the names of the hooks that are attached now."""
        return frozenset(hook.hook.name for hook in self.hooks if hook.on)

    def attachments(self) -> list[Attachment]:
        """Return each program that this process holds attached, with its hook."""
        every = ((name, point) for name, points in self.points.items() for point in points)
        return [
            Attachment(name, point.how, point.symbol, point.link)
            for name, point in every
            if point.link
        ]

    def update_detached(self, reasons: Mapping[str, str]) -> list[PlannedHook]:
        """Mark hooks as detached by someone else, and those that came back as attached.

        reasons: each hook that is off now though this process holds it attached -> why.
        Returns the hooks whose state changed.
        """
        changed = []
        for n, hook in enumerate(self.hooks):
            reason = reasons.get(hook.hook.name, "")
            if reason and hook.on:
                self.hooks[n] = replace(hook, state=HookState.DETACHED, reason=reason)
            elif not reason and hook.state is HookState.DETACHED:
                self.hooks[n] = hook.attached(hook.chosen)
            else:
                continue
            changed.append(self.hooks[n])
        return changed

    def statistics(self) -> dict[str, RunStatistics]:
        """Read the run statistics of each hook, those of its programs added up."""
        return {
            name: RunStatistics.total([point.statistics() for point in points])
            for name, points in self.points.items()
        }

    @property
    def statistics_on(self) -> bool:
        """Whether this process has the kernel count runs and run times of programs."""
        return self.statistics_fd >= 0

    def switch_statistics_on(self) -> None:
        """Have the kernel count runs and run times, those of other programs too. Raises OSError."""
        if not self.statistics_on:
            helper = self.reattach_helper
            self.statistics_fd = helper.enable_statistics() if helper else enable_statistics()

    def switch_statistics_off(self) -> None:
        """Let the kernel count no longer, as far as this process asked for it."""
        if self.statistics_on:
            os.close(self.statistics_fd)
        self.statistics_fd = -1

    def missed(self, of: Callable[[PlannedHook], bool]) -> int:
        """Read how many runs the kernel left out of the programs of these hooks."""
        points = (point for hook in filter(of, self.hooks) for point in self._points(hook))
        return sum(point.missed() for point in points)

    def _points(self, hook: PlannedHook) -> Sequence[AttachedProgram]:
        return self.points.get(hook.hook.name, ())

    def ring(
        self, name: str, before_consumed: Callable[[int, bytes], None] | None = None
    ) -> RingBuffer:
        """Open a ring buffer map for reading; see RingBuffer."""
        ring = self.maps[name]
        return RingBuffer(ring.fd, ring.max_entries, before_consumed)

    def pause(self, probe_objects: Collection[str], reason: str) -> None:
        """Detach the hooks of these probe objects for now; reason: why, for reports.

        Their programs stay loaded, and their statistics go on from where they are. A program that
        runs on demand is not attached to anything, and stays as it is.
        """
        paused = [
            (n, hook)
            for n, hook in self._hooks_of(probe_objects)
            if hook.how != "run" and (hook.on or hook.state is HookState.DETACHED)
        ]
        detach_all(*(self.points[hook.hook.name] for _, hook in paused), closed=self.closed)
        for n, hook in paused:
            self.hooks[n] = replace(hook, state=HookState.PAUSED, reason=reason)

    def resume(self, probe_objects: Collection[str]) -> list[str]:
        """Attach the paused hooks of these probe objects again.

        Returns why, for each that the kernel refuses now; such a hook stays paused. A helper that
        hangs or has ended is asked once.
        """
        refused = []
        for n, hook in self._hooks_of(probe_objects):
            if hook.state is HookState.PAUSED:
                try:
                    attach_all(self.points[hook.hook.name], self.reattach_helper)
                    self.hooks[n] = hook.attached(hook.chosen)
                except OSError as error:
                    refused.append(f"{hook.how} {hook.symbol}: {error.strerror}")
                    if error.errno in (errno.ETIMEDOUT, errno.EPIPE):
                        break
        return refused

    def _hooks_of(self, probe_objects: Collection[str]) -> Iterator[tuple[int, PlannedHook]]:
        return ((n, one) for n, one in enumerate(self.hooks) if one.probe_object in probe_objects)

    def start_reattach_helper(
        self, probe_objects: Collection[str], user: User | None = None, *, statistics: bool = False
    ) -> None:
        """Start the process that attaches the hooks of these probe objects after a pause.

        Their hooks are attached now, or paused. From then on resume() needs no privilege of this
        process. user: that the helper becomes; None: it stays the one that it is. statistics: the
        helper also switches statistics on.
        """
        hooks = [
            hook
            for _, hook in self._hooks_of(probe_objects)
            if hook.on or hook.state is HookState.PAUSED
        ]
        points = [point for hook in hooks for point in self._points(hook) if point.how != "run"]
        targets = [ProgramTarget(point.program, point.how, point.symbol) for point in points]
        self.reattach_helper = ReattachHelper(targets, user, statistics=statistics)

    def detach(self) -> None:
        """Detach every program; programs and maps stay."""
        detach_all(*reversed(self.points.values()), closed=self.closed)

    def close(self) -> None:
        """Detach everything, then close programs and maps."""
        close_all(*reversed(self.points.values()), closed=self.closed)
        if self.reattach_helper:
            self.reattach_helper.close()
        for table in self.maps.values():
            table.close()
        self.switch_statistics_off()
        self.points, self.maps = {}, {}

    def __enter__(self) -> AttachedProbes:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Close everything, but not after a defect, which ends this process.

        The supervisor then reads the maps and detaches. Without one, the kernel closes all.
        """
        if error is None or isinstance(error, RmapdError | KeyboardInterrupt | GeneratorExit):
            self.close()
