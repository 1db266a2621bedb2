"""What another process needs to go on with a dead checker's maps: the first record of its log.

It names each file descriptor and repeats how the session was set up (checkpoint.py has the log).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tracer.attach.attach_process import AttachReply
from tracer.bpf.syscall import object_name


class TakeoverRecord(msgspec.Struct, frozen=True):
    """The descriptors of the maps and programs, and how the session was set up.

    fds are the descriptors that `answer` describes, in its order; none is a link of an attachment.
    level is the fidelity. started_ns is CLOCK_MONOTONIC. oracle_reason says why there is no
    page-table oracle; it is empty where the oracle is calibrated. names has object_name() of each
    map and program.
    """

    answer: AttachReply
    fds: list[int]
    level: str
    started_ns: int
    oracle_reason: str
    names: list[str]

    @classmethod
    def create(
        cls, answer: AttachReply, fds: list[int], level: str, started_ns: int, oracle_reason: str
    ) -> TakeoverRecord:
        """Make the record for descriptors of this process, and look up their names."""
        return cls(
            answer, fds, level, started_ns, oracle_reason, list(filter(None, map(object_name, fds)))
        )

    def maps_and_programs(self) -> list[int]:
        """Return the descriptors that another process can use: no attachment, and no iterator."""
        return [fd for fd in self.fds if object_name(fd)]

    def encoded(self) -> bytes:
        """Return the record as msgpack."""
        return msgspec.msgpack.encode(self)


def with_descriptors(record: TakeoverRecord, descriptors: Mapping[str, int]) -> TakeoverRecord:
    """Return the record for another process, which has the same maps and programs by name.

    Raises KeyError where a name is missing.
    """
    points = [msgspec.structs.replace(point, linked=False) for point in record.answer.points]
    answer = msgspec.structs.replace(record.answer, points=points, statistics=False)
    return msgspec.structs.replace(
        record, answer=answer, fds=[descriptors[name] for name in record.names]
    )


def decode(raw: bytes) -> TakeoverRecord:
    """Decode a record. Raises msgspec.DecodeError for a record of another version."""
    return msgspec.msgpack.decode(raw, type=TakeoverRecord)
