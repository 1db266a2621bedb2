"""What the daemon knows of one span: its connection, its stage, and its lowest coverage."""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass, field

from tracer.checking.open_doubts import OpenDoubt
from tracer.config import LEVELS
from tracer.daemon.span_messages import MOST_ASKED_BYTES
from tracer.invariants.base import Coverage
from tracer.process import local_socket


class Stage(enum.Enum):
    """Where a span stands: what it waits for, or RUNNING."""

    NEW = "new"
    AUDIT_BEFORE = "audit before"
    RUNNING = "running"
    SETTLE = "settle"
    AUDIT_AFTER = "audit after"


@dataclass
class Span:
    """A connection and what is known of its span. Times are of the session's clock.

    number: of the audit's pass that is waited for. doubts: that were open when it ended.
    """

    connection: socket.socket
    pid: int
    stage: Stage = Stage.NEW
    began_ns: int = 0
    ended_ns: int = 0
    until_ns: int = 0
    next_look_ns: int = 0
    number: int = 0
    pass_ended: bool = False
    doubts: list[OpenDoubt] = field(default_factory=list)
    owners: frozenset[tuple[int, int]] = frozenset()
    owners_until_ns: int = 0
    undecided: str = ""
    level: str = LEVELS[0]
    lowered: bool = False
    coverage: dict[str, tuple[Coverage, str]] = field(default_factory=dict)
    inbox: local_socket.Inbox = field(default_factory=lambda: local_socket.Inbox(MOST_ASKED_BYTES))
    out: memoryview = field(default_factory=lambda: memoryview(b""))

    @property
    def waits(self) -> bool:
        """Whether the daemon has something to do before it answers."""
        return self.stage not in (Stage.NEW, Stage.RUNNING)
