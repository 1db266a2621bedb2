"""The messages between `rmapd exec` and the daemon that it uses: spans of the daemon's time.

A span is one connection. The daemon sends a Greeting; then each message of exec has one answer.
Both sides are the same version of rmapd.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from tracer.results.difference import SpanFacts

WIRE = 1
"""Raise it with every change of a message or of the snapshot that is not seen in the version."""
MOST_ASKED_BYTES = 1 << 12
MOST_ANSWERED_BYTES = 256 << 20


class Greeting(msgspec.Struct, frozen=True, tag=True):
    """Who answers, or why it does not.

    pid: that users know. since: when its gate opened, seconds since the epoch. fidelity: now.
    """

    rmapd: str
    wire: int
    pid: int
    since: float
    fidelity: str
    refused: str = ""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Begin the span after a whole pass of the state audit. Answer: Report."""


class Count(msgspec.Struct, frozen=True, tag=True):
    """Answer: Totals."""


class Look(msgspec.Struct, frozen=True, tag=True):
    """Report now, in the middle of the span. Answer: Report."""


class End(msgspec.Struct, frozen=True, tag=True):
    """The command has ended: settle, audit, report. Answer: Report.

    settle_seconds: for migrations in progress.
    """

    settle_seconds: float


class Totals(msgspec.Struct, frozen=True, tag=True):
    """Counts since the gate opened, `seconds` ago, for a timeline."""

    seconds: float
    totals: dict[str, int]


class Report(msgspec.Struct, frozen=True, tag=True):
    """The daemon's report (results/wire.py) and what it knows of the span until now.

    stopped: the daemon is ending, and this is its last report.
    """

    snapshot: bytes
    facts: SpanFacts
    stopped: bool = False


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The daemon cannot answer, and why."""

    why: str


Asked = Begin | Count | Look | End
Answer = Totals | Report | Failed
Message = Greeting | Asked | Answer
_Kind = TypeVar("_Kind")


def encode(message: Message) -> bytes:
    """Return a message as bytes."""
    return msgspec.msgpack.encode(message, enc_hook=dict)


def decode_asked(raw: bytes) -> Asked:
    """Read a message of exec. Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(raw, type=Asked)


def decode_answer(raw: bytes) -> Answer:
    """Read an answer of the daemon. Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(raw, type=Answer)


class _Version(msgspec.Struct, frozen=True):
    """What the Greeting of every version has."""

    rmapd: str = "an unknown version"
    wire: int = -1
    refused: str = ""


def decode_version(raw: bytes) -> tuple[str, int, str]:
    """Read version, wire number and refusal of a Greeting of any version."""
    found = msgspec.msgpack.decode(raw, type=_Version)
    return found.rmapd, found.wire, found.refused


def decode_greeting(raw: bytes) -> Greeting:
    """Read a Greeting of this version. Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(raw, type=Greeting)
