"""What a judge hands down while it lives: which descriptors are what, and how it was set up. It begins its log (checkpoint.py)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tracer.attach.attach_process import AttachReply
from tracer.bpf.syscall import object_name


class HandedDown(msgspec.Struct, frozen=True):
    """fds: of what `answer` says, in its order, no link of an attachment among them. started_ns: CLOCK_MONOTONIC.
    oracle_reason: why there is no oracle; empty where it is calibrated. names: of the maps' and programs' descriptors, object_name()."""

    answer: AttachReply
    fds: list[int]
    level: str
    started_ns: int
    oracle_reason: str
    names: list[str]

    @classmethod
    def of(
        cls, answer: AttachReply, fds: list[int], level: str, started_ns: int, oracle_reason: str
    ) -> HandedDown:
        return cls(
            answer, fds, level, started_ns, oracle_reason, list(filter(None, map(object_name, fds)))
        )

    def kept(self) -> list[int]:
        """The descriptors of maps and programs: no attachment, and no iterator."""
        return [fd for fd in self.fds if object_name(fd)]

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)


def taken_over(down: HandedDown, descriptors: Mapping[str, int]) -> HandedDown:
    """The same in another process, which has these descriptors by name. KeyError: some are missing."""
    points = [msgspec.structs.replace(point, linked=False) for point in down.answer.points]
    answer = msgspec.structs.replace(down.answer, points=points, statistics=False)
    return msgspec.structs.replace(
        down, answer=answer, fds=[descriptors[name] for name in down.names]
    )


def read(raw: bytes) -> HandedDown:
    """Raises msgspec.DecodeError, for what another version has written."""
    return msgspec.msgpack.decode(raw, type=HandedDown)
