"""Attach in a process of its own, which hands over file descriptors and ends.

The kernel's types and symbols, the plan and what the compiler answers take some 100 MB, and the
daemon needs none of it once all is attached. The child is a fork. Through a Unix socket come eight
bytes of length, then the reply (msgpack of AttachReply), then the descriptors in its order: maps,
programs with their links, and the one that keeps BPF statistics on. The kernel keeps what they
stand for while one process has them open.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tracer.attach import loader, resolver
from tracer.attach.attached import AttachedProbes, AttachedProgram
from tracer.attach.compile_cache import CompileCache
from tracer.attach.objects import Objects
from tracer.attach.plan import PlannedHook
from tracer.bpf.links import link_of
from tracer.bpf.maps import Map, possible_cpus
from tracer.bpf.programs import Program
from tracer.errors import Defect, RmapdError, Temporary, of_kind, of_os, passes
from tracer.kernel.btf import STRUCT
from tracer.kernel.running import Kernel
from tracer.process.children import die_with_parent
from tracer.process.fd_passing import (
    death_error,
    receive_descriptors,
    receive_exactly,
    send_descriptors,
)

log = logging.getLogger("rmapd")

_MEMORY = "the same again later; it needs 150 MB for a second"


@dataclass(frozen=True)
class AttachOrder:
    """What is to be attached.

    folders: of probe objects; the first one's `include` has the headers.
    only: names of the probe objects to attach; None: all.
    constants: the enumerators of the header that daemon and programs share.
    sizes: macro -> rows of a map. statistics: have the kernel count run times.
    enums: of the kernel, that the caller will ask for afterwards.
    cache: folder of compiled programs; None: compile anew.
    """

    folders: Sequence[Path]
    only: frozenset[str] | None
    constants: Mapping[str, int]
    sizes: Mapping[str, int]
    statistics: bool
    enums: Sequence[str] = ()
    cache: Path | None = None


class _Point(msgspec.Struct, frozen=True):
    """A program of a hook. linked: the descriptor of its link comes behind its own."""

    hook: str
    how: str
    symbol: str
    linked: bool


class AttachReply(msgspec.Struct, frozen=True):
    """The child's reply: what the descriptors are, in their order; or why there are none.

    maps: name -> (kind, key size, value size, rows). error: what, why, hint and exit code of
    RmapdError.
    """

    hooks: list[PlannedHook] = []
    maps: dict[str, tuple[int, int, int, int]] = {}
    points: list[_Point] = []
    statistics: bool = False
    page_size: int = 0
    enums: dict[str, dict[str, int]] = {}
    origin: str = ""
    error: tuple[str, str, str, int] | None = None


@dataclass(frozen=True)
class AttachOutcome:
    """The attached probes, and the facts of the kernel that only the child has read.

    page_size: sizeof(struct page). enums: those that were asked for.
    """

    probes: AttachedProbes
    page_size: int
    enums: Mapping[str, dict[str, int]]


def attach(kernel: Kernel, order: AttachOrder) -> AttachOutcome:
    """Resolve, compile, load and attach in a child, and take over what it attached.

    Raises RmapdError as the child did; Temporary or Defect where it died.
    """
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError as error:
        ours.close()
        theirs.close()
        raise of_os(error, "cannot start the process that attaches", _MEMORY) from error
    if not child:
        status = 1
        try:
            die_with_parent(signal.SIGKILL, parent)
            threading.setprofile(None)  # the daemon's drops the privileges of threads
            ours.close()
            _serve(theirs, kernel, order)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    theirs.close()
    with ours:
        try:
            reply, fds = _receive(ours)
        finally:
            _, status = os.waitpid(child, 0)
    if reply is None:
        raise death_error(
            "the process that attaches gave no answer", os.waitstatus_to_exitcode(status), _MEMORY
        )
    if reply.error:
        what, why, hint, exit_code = reply.error
        raise of_kind(exit_code)(what, why=why, hint=hint)
    return AttachOutcome(taken_over(reply, fds), reply.page_size, reply.enums)


def _serve(parent: socket.socket, kernel: Kernel, order: AttachOrder) -> None:
    """Run the child: attach, reply, send the descriptors."""
    fds: list[int] = []
    try:
        reply, fds = _attached(kernel, order)
    except RmapdError as error:
        reply = _refusal(error)
    except Exception as error:
        if not passes(error):
            log.critical(
                "a defect of rmapd, while attaching: %s: %s",
                type(error).__name__,
                error,
                exc_info=error,
            )
        kind = Temporary if passes(error) else Defect
        reply = _refusal(
            kind(
                "cannot attach",
                why=f"{type(error).__name__}: {error}",
                hint=_MEMORY if passes(error) else "report it",
            )
        )
    text = msgspec.msgpack.encode(reply)
    parent.sendall(struct.pack("<Q", len(text)) + text)
    send_descriptors(parent, fds)


def _attached(kernel: Kernel, order: AttachOrder) -> tuple[AttachReply, list[int]]:
    plan = resolver.make_plan(kernel, order.folders, order.only)
    build = loader.BuildEnvironment(
        kernel,
        order.constants,
        order.folders[0] / "include",
        order.sizes,
        CompileCache(order.cache) if order.cache else None,
        Objects(kernel, order.folders, order.sizes),
    )
    probes = loader.load(plan, build, statistics=order.statistics)
    page_size = kernel.types.size(kernel.types.find("page", STRUCT) or 0)
    return describe(probes, page_size, {name: kernel.enumerators(name) for name in order.enums})


def _refusal(error: RmapdError) -> AttachReply:
    return AttachReply(error=(error.what, error.why, error.hint, error.exit_code))


def describe(
    probes: AttachedProbes,
    page_size: int,
    enums: Mapping[str, dict[str, int]],
    *,
    links: bool = True,
) -> tuple[AttachReply, list[int]]:
    """Return the reply that describes attached probes, and their descriptors in its order.

    links: with those that keep programs attached and statistics on; else only those of iterators,
    which run when read. Another process that goes on with these descriptors later must not be told
    of one that comes and goes.
    """
    maps = {
        name: (m.kind, m.key_size, m.value_size, m.max_entries) for name, m in probes.maps.items()
    }
    points, fds = [], [table.fd for table in probes.maps.values()]
    for name, attached in probes.points.items():
        for point in attached:
            link = point.link if links or point.how == "iter" else None
            points.append(_Point(name, point.how, point.symbol, link is not None))
            fds += [point.program.fd] + ([link.fd] if link else [])
    statistics = links and probes.statistics_on
    fds += [probes.statistics_fd] if statistics else []
    origin = probes.origin
    return AttachReply(probes.hooks, maps, points, statistics, page_size, dict(enums), origin), fds


def _receive(child: socket.socket) -> tuple[AttachReply | None, list[int]]:
    """Return (the reply, the descriptors); no reply where the child died before it gave one."""
    head = receive_exactly(child, 8)
    if len(head) < 8:
        return None, []
    (size,) = struct.unpack("<Q", head)
    text = receive_exactly(child, size)
    if len(text) < size:
        return None, []
    reply = msgspec.msgpack.decode(text, type=AttachReply)
    count = len(reply.maps) + sum(1 + point.linked for point in reply.points) + reply.statistics
    return reply, receive_descriptors(child, count)


def taken_over(reply: AttachReply, fds: Iterable[int]) -> AttachedProbes:
    """Return the probes that a reply describes, over this process's descriptors of them.

    fds: in the reply's order.
    """
    left, cpus = iter(fds), possible_cpus()
    maps = {
        name: Map(next(left), kind, key_size, value_size, rows, cpus)
        for name, (kind, key_size, value_size, rows) in reply.maps.items()
    }
    points: dict[str, list[AttachedProgram]] = {}
    for point in reply.points:
        program = Program(next(left))
        link = link_of(point.how, next(left)) if point.linked else None
        attached = AttachedProgram(program, point.how, point.symbol, link)
        points.setdefault(point.hook, []).append(attached)
    statistics_fd = next(left) if reply.statistics else -1
    return AttachedProbes(reply.hooks, maps, points, statistics_fd, origin=reply.origin)
