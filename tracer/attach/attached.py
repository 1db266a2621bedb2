"""What runs in the kernel, held by file descriptors: maps, programs, and where each is attached."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tracer.attach.liveness import Attachment
from tracer.attach.plan import HookState, PlannedHook
from tracer.attach.reattach_helper import ProgramTarget, ReattachHelper
from tracer.bpf.links import IteratorLink, Link
from tracer.bpf.maps import Map
from tracer.bpf.programs import Program, RunStatistics
from tracer.bpf.ring_buffer import RingBuffer
from tracer.process.users import User


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


def detach_all(points: Sequence[AttachedProgram]) -> None:
    """Detach the programs of one hook, the one at a function's entry first."""
    for point in points:
        point.detach()


def close_all(points: Sequence[AttachedProgram]) -> None:
    """Detach the programs of one hook and unload them."""
    detach_all(points)
    for point in points:
        point.program.close()


@dataclass
class AttachedProbes:
    """Owns maps, programs and links; the kernel frees them when the process exits.

    hooks: of the whole plan, as they stand now. maps: by name. points: hook -> its programs.
    statistics_fd: makes the kernel count run times while it is open; -1 where it does not.
    reattach_helper: attaches paused hooks again, where this process has no privilege to do so.
    """

    hooks: list[PlannedHook] = field(default_factory=list)
    maps: dict[str, Map] = field(default_factory=dict)
    points: dict[str, list[AttachedProgram]] = field(default_factory=dict)
    statistics_fd: int = -1
    reattach_helper: ReattachHelper | None = None

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
        for n, hook in self._hooks_of(probe_objects):
            if hook.how != "run" and (hook.on or hook.state is HookState.DETACHED):
                detach_all(self.points[hook.hook.name])
                self.hooks[n] = replace(hook, state=HookState.PAUSED, reason=reason)

    def resume(self, probe_objects: Collection[str]) -> list[str]:
        """Attach the paused hooks of these probe objects again.

        Returns why, for each that the kernel refuses now; such a hook stays paused.
        """
        refused = []
        for n, hook in self._hooks_of(probe_objects):
            if hook.state is HookState.PAUSED:
                try:
                    attach_all(self.points[hook.hook.name], self.reattach_helper)
                    self.hooks[n] = hook.attached(hook.chosen)
                except OSError as error:
                    refused.append(f"{hook.how} {hook.symbol}: {error.strerror}")
        return refused

    def _hooks_of(self, probe_objects: Collection[str]) -> Iterator[tuple[int, PlannedHook]]:
        return ((n, one) for n, one in enumerate(self.hooks) if one.probe_object in probe_objects)

    def start_reattach_helper(
        self, probe_objects: Collection[str], user: User | None = None
    ) -> None:
        """Start the process that attaches the hooks of these probe objects after a pause.

        Their hooks are attached now, or paused. From then on resume() needs no privilege of this
        process. user: that the helper becomes; None: it stays the one that it is.
        """
        hooks = [
            hook
            for _, hook in self._hooks_of(probe_objects)
            if hook.on or hook.state is HookState.PAUSED
        ]
        points = [point for hook in hooks for point in self._points(hook) if point.how != "run"]
        targets = [ProgramTarget(point.program, point.how, point.symbol) for point in points]
        self.reattach_helper = ReattachHelper(targets, user)

    def detach(self) -> None:
        """Detach every program; programs and maps stay."""
        for points in reversed(self.points.values()):
            detach_all(points)

    def close(self) -> None:
        """Detach everything, then close programs and maps."""
        if self.reattach_helper:
            self.reattach_helper.close()
        for points in reversed(self.points.values()):
            close_all(points)
        for table in self.maps.values():
            table.close()
        if self.statistics_fd >= 0:
            os.close(self.statistics_fd)
        self.points, self.maps, self.statistics_fd = {}, {}, -1

    def __enter__(self) -> AttachedProbes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
