"""Attaching in a process of its own, which hands over file descriptors and ends.

The kernel's types and symbols, the plan and what the compiler answers take some 100 MB, and none of it is needed once all is attached.
The child is a fork. Through a Unix socket come eight bytes of length, then the answer (msgpack of `Answer`), then the descriptors: maps,
programs, links, and the one that keeps BPF statistics on. What they stand for lives in the kernel as long as one process has them open.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tracer.attach import loader, plan
from tracer.attach.attached import AttachedProbes, AttachedProgram
from tracer.attach.compile_cache import Cache
from tracer.attach.plan import Planned
from tracer.bpf.maps import Map, possible_cpus
from tracer.bpf.programs import Iterated, Link, Program
from tracer.errors import Defect, RmapdError, Temporary, of_kind, of_os, passes
from tracer.kernel.btf import STRUCT
from tracer.kernel.running import Kernel
from tracer.process.children import die_with_parent
from tracer.process.fd_passing import died, exactly, receive_descriptors, send_descriptors

log = logging.getLogger("rmapd")

_MEMORY = "the same again later; it needs 150 MB for a second"


@dataclass(frozen=True)
class AttachOrder:
    """What is to be attached: the stems of these folders (or only those named), with books.h's constants and the maps' sizes.
    enums: of the kernel, that will be asked for afterwards."""

    folders: Sequence[Path]
    only: frozenset[str] | None
    constants: Mapping[str, int]
    sizes: Mapping[str, int]
    statistics: bool
    enums: Sequence[str] = ()
    cache: Path | None = None


class _Point(msgspec.Struct, frozen=True):
    """A program, and whether its link comes with it."""

    hook: str
    how: str
    symbol: str
    linked: bool


class AttachResult(msgspec.Struct, frozen=True):
    """What the descriptors are, in their order; or why there are none."""

    hooks: list[Planned] = []
    maps: dict[str, tuple[int, int, int, int]] = {}
    points: list[_Point] = []
    statistics: bool = False
    page_size: int = 0
    enums: dict[str, dict[str, int]] = {}
    error: tuple[str, str, str, int] | None = None  # the last is the exit code


@dataclass(frozen=True)
class Attached:
    """Everything that runs, sizeof(struct page), and the enums that were asked for."""

    loaded: AttachedProbes
    page_size: int
    enums: Mapping[str, dict[str, int]]


def attach(kernel: Kernel, order: AttachOrder) -> Attached:
    """Plan, compile, load and attach. RmapdError as the child raised it, or that it died."""
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError as error:
        ours.close()
        theirs.close()
        raise of_os(error, "cannot start the process that attaches", _MEMORY) from error
    if not child:
        try:
            die_with_parent(signal.SIGKILL, parent)
            ours.close()
            _serve(theirs, kernel, order)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        try:
            answer, fds = _receive(ours)
        finally:
            _, status = os.waitpid(child, 0)
    if answer is None:
        raise died(
            "the process that attaches gave no answer", os.waitstatus_to_exitcode(status), _MEMORY
        )
    if answer.error:
        what, why, hint, exit_code = answer.error
        raise of_kind(exit_code)(what, why=why, hint=hint)
    return Attached(taken_over(answer, fds), answer.page_size, answer.enums)


def _serve(theirs: socket.socket, kernel: Kernel, order: AttachOrder) -> None:
    """The child's side."""
    fds: list[int] = []
    try:
        planned = plan.make(kernel, order.folders, order.only)
        include, cache = order.folders[0] / "include", Cache(order.cache) if order.cache else None
        kit = loader.Kit(kernel.types, order.constants, include, order.sizes, kernel.release, cache)
        loaded = loader.load(planned, kit, statistics=order.statistics)
        page_size = kernel.types.size(kernel.types.find("page", STRUCT) or 0)
        enums = {name: kernel.enumerators(name) for name in order.enums}
        answer, fds = describe(loaded, page_size, enums)
    except RmapdError as error:
        answer = _refusal(error)
    except Exception as error:
        if not passes(error):
            log.critical(
                "a defect of rmapd, while attaching: %s: %s",
                type(error).__name__,
                error,
                exc_info=error,
            )
        kind = Temporary if passes(error) else Defect
        answer = _refusal(
            kind(
                "cannot attach",
                why=f"{type(error).__name__}: {error}",
                hint=_MEMORY if passes(error) else "report it",
            )
        )
    text = msgspec.msgpack.encode(answer)
    theirs.sendall(struct.pack("<Q", len(text)) + text)
    send_descriptors(theirs, fds)


def _refusal(error: RmapdError) -> AttachResult:
    return AttachResult(error=(error.what, error.why, error.hint, error.exit_code))


def describe(
    loaded: AttachedProbes,
    page_size: int,
    enums: Mapping[str, dict[str, int]],
    *,
    links: bool = True,
) -> tuple[AttachResult, list[int]]:
    """The answer, and the descriptors in its order. links: with what keeps programs attached; else only iterators, which run when read."""
    maps = {
        name: (m.kind, m.key_size, m.value_size, m.max_entries) for name, m in loaded.maps.items()
    }
    points, fds = [], [table.fd for table in loaded.maps.values()]
    for name, fastened in loaded.points.items():
        for point in fastened:
            link = point.link if links or point.how == "iter" else None
            points.append(_Point(name, point.how, point.symbol, link is not None))
            fds += [point.program.fd] + ([link.fd] if link else [])
    fds += [loaded.statistics_fd] * (loaded.statistics_fd >= 0)
    return AttachResult(
        loaded.hooks, maps, points, loaded.statistics_fd >= 0, page_size, dict(enums)
    ), fds


def _count(answer: AttachResult) -> int:
    return len(answer.maps) + sum(1 + point.linked for point in answer.points) + answer.statistics


def _receive(ours: socket.socket) -> tuple[AttachResult | None, list[int]]:
    head = exactly(ours, 8)
    if len(head) < 8:
        return None, []
    (size,) = struct.unpack("<Q", head)
    text = exactly(ours, size)
    if len(text) < size:
        return None, []
    answer = msgspec.msgpack.decode(text, type=AttachResult)
    return answer, receive_descriptors(ours, _count(answer))


def taken_over(answer: AttachResult, fds: Collection[int]) -> AttachedProbes:
    """The same as who described it had it, by our descriptors."""
    left, cpus = iter(fds), possible_cpus()
    loaded = AttachedProbes(hooks=answer.hooks)
    for name, (kind, key_size, value_size, rows) in answer.maps.items():
        loaded.maps[name] = Map(next(left), kind, key_size, value_size, rows, cpus)
    for point in answer.points:
        program = Program(next(left))
        link = (Iterated if point.how == "iter" else Link)(next(left)) if point.linked else None
        loaded.points.setdefault(point.hook, []).append(
            AttachedProgram(program, point.how, point.symbol, link)
        )
    loaded.statistics_fd = next(left) if answer.statistics else -1
    return loaded
