"""What runs in the kernel, held by file descriptors: maps, programs, and where each program is attached."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tracer.attach.liveness import Attachment
from tracer.attach.plan import Planned, State
from tracer.attach.reattach_helper import ReattachHelper
from tracer.bpf.maps import Map, Ring
from tracer.bpf.programs import Iterated, Link, Program, RunStatistics
from tracer.process.privileges import User


@dataclass
class AttachedProgram:
    """A loaded program, the place that it is for, and its link there while it is attached."""

    program: Program
    how: str
    symbol: str
    link: Link | None = None


def fasten(
    points: Sequence[AttachedProgram], reattach_helper: ReattachHelper | None = None
) -> None:
    """Attach all, a return before its entry: no window opens that cannot close. Where one is refused (OSError) none stays."""
    try:
        for point in reversed(points):
            kept = reattach_helper if point.how != "run" else None
            point.link = (
                kept.attach(point.program)
                if kept
                else point.program.attach(point.how, point.symbol)
            )
    except OSError:
        unfasten(points)
        raise


def unfasten(points: Sequence[AttachedProgram]) -> None:
    """Detach all, an entry before its return."""
    for point in points:
        if point.link:
            point.link.close()
        point.link = None


def close_all(points: Sequence[AttachedProgram]) -> None:
    """Detach, and let go of the programs."""
    unfasten(points)
    for point in points:
        point.program.close()


@dataclass
class AttachedProbes:
    """Close it (or die) and nothing of it remains. keeper: who attaches what has rested, if it is not us."""

    hooks: list[Planned] = field(default_factory=list)
    maps: dict[str, Map] = field(default_factory=dict)
    points: dict[str, list[AttachedProgram]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    statistics_fd: int = -1
    reattach_helper: ReattachHelper | None = None

    @property
    def programs(self) -> dict[str, list[Program]]:
        return {name: [point.program for point in points] for name, points in self.points.items()}

    def iterator(self, name: str) -> Iterated | None:
        return next(
            (point.link for point in self.points.get(name, ()) if isinstance(point.link, Iterated)),
            None,
        )

    def attached(self) -> frozenset[str]:
        return frozenset(h.hook.name for h in self.hooks if h.on)

    def attachments(self) -> list[Attachment]:
        """What is attached now, point by point."""
        every = ((name, point) for name, points in self.points.items() for point in points)
        return [
            Attachment(name, point.how, point.symbol, point.link)
            for name, point in every
            if point.link
        ]

    def mark(self, off: Mapping[str, str]) -> list[Planned]:
        """hook -> why it is off now, though we left it on; those that were and are not named are on again. The hooks that changed."""
        changed = []
        for n, hook in enumerate(self.hooks):
            why = off.get(hook.hook.name, "")
            if (why and hook.on) or (not why and hook.state is State.DETACHED):
                self.hooks[n] = (
                    replace(hook, state=State.DETACHED, reason=why)
                    if why
                    else hook.attached(hook.taken)
                )
                changed.append(self.hooks[n])
        return changed

    def statistics(self) -> dict[str, RunStatistics]:
        """By hook name; the programs at entry and return of one function together."""
        return {
            name: RunStatistics.total([point.program.statistics() for point in points])
            for name, points in self.points.items()
        }

    def missed(self, of: Callable[[Planned], bool]) -> int:
        """Runs that the kernel left out of the programs of those hooks."""
        points = (
            point
            for hook in self.hooks
            if of(hook)
            for point in self.points.get(hook.hook.name, ())
        )
        return sum(point.program.missed() for point in points)

    def ring(self, name: str, keep: Callable[[int, bytes], None] | None = None) -> Ring:
        ring = self.maps[name]
        return Ring(ring.fd, ring.max_entries, keep)

    def rest(self, probe_objects: Collection[str], reason: str) -> None:
        """Take the hooks of these stems off their functions, for now; their programs stay loaded, their counts go on from here."""
        for n, hook in enumerate(self.hooks):
            if hook.probe_object in probe_objects and (hook.on or hook.state is State.DETACHED):
                unfasten(self.points[hook.hook.name])
                self.hooks[n] = replace(hook, state=State.RESTING, reason=reason)

    def resume(self, probe_objects: Collection[str]) -> list[str]:
        """Attach the hooks of these stems that rest; why for each that the kernel refuses now."""
        refused = []
        for n, hook in enumerate(self.hooks):
            if hook.probe_object in probe_objects and hook.state is State.RESTING:
                try:
                    fasten(self.points[hook.hook.name], self.reattach_helper)
                    self.hooks[n] = hook.attached(hook.taken)
                except OSError as error:
                    refused.append(f"{hook.how} {hook.symbol}: {error.strerror}")
        return refused

    def keep(self, probe_objects: Collection[str], who: User | None = None) -> None:
        """Start a keeper of the hooks of these stems, which becomes `who`: it attaches them, and we need no privilege for it."""
        names = [
            hook.hook.name for hook in self.hooks if hook.on and hook.probe_object in probe_objects
        ]
        points = [point for name in names for point in self.points[name] if point.link]
        self.reattach_helper = ReattachHelper(
            [(point.program, point.how, point.symbol) for point in points], who
        )

    def detach(self) -> None:
        """Take every program off its function; programs and maps stay."""
        for points in reversed(self.points.values()):
            unfasten(points)

    def close(self) -> None:
        """Detach everything, then let go of programs and maps."""
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
