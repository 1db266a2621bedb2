"""The log of findings: a JSON line for each new signature, an hourly line for each that went on. Lines are limited, counts never.

A line about what is violated is critical, about a suspect a warning: whoever is woken by one is woken by the kernel, not by a missing hook.

Under systemd (JOURNAL_STREAM) a line goes to journald by its native protocol, with fields to search for: `journalctl RMAPD_INVARIANT=L1`.
Not by libsystemd: its datagrams wait for a journald that hangs, and the judging thread must not.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tracer.invariants.verdict import Verdict, Violation
from tracer.logs import is_journal, priority
from tracer.results.json_form import iso, violation_json

log = logging.getLogger("rmapd")

_SOCKET = "/run/systemd/journal/socket"
_FIELDS = ("id", "invariant", "verdict", "function", "signature", "count")
_MOST_A_MINUTE = 30
_HOUR, _MINUTE = 3600.0, 60.0
_LEVELS = {Verdict.VIOLATED: logging.CRITICAL, Verdict.SUSPECT: logging.WARNING}


def datagram(fields: Mapping[str, str]) -> bytes:
    """Fields as systemd's JOURNAL_NATIVE_PROTOCOL has them: a value with a newline comes with its length, little endian."""
    out = b""
    for name, text in fields.items():
        value = text.encode()
        out += (
            name.encode()
            + (b"\n" + len(value).to_bytes(8, "little") + value if b"\n" in value else b"=" + value)
            + b"\n"
        )
    return out


def to_journald(fields: Mapping[str, str], address: str = _SOCKET) -> None:
    """One entry, or OSError; never waits."""
    with socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    ) as out:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        out.sendto(datagram(fields), address)


class FindingLog:
    """new() for findings whose signature is new, repeats() once a tick."""

    def __init__(
        self,
        clock: Callable[[], float],
        environ: Mapping[str, str] = os.environ,
        write: Callable[[str], None] = lambda line: print(line, flush=True),
        send: Callable[[Mapping[str, str]], None] = to_journald,
    ) -> None:
        self._clock, self._write, self._send = clock, write, send
        self._native = is_journal(environ, 1)
        self._told: Counter[str] = Counter()  # by signature
        self._next_hour = clock() + _HOUR
        self._minute, self._in_minute = clock(), 0
        self._withheld: list[str] = []
        self._worst = logging.WARNING  # of what is withheld

    def new(self, violations: Iterable[Violation]) -> None:
        """A line each; beyond a number in a minute one line for all."""
        for violation in violations:
            row, level = violation_json(violation), _LEVELS[violation.first.verdict]
            self._told[violation.first.signature] = violation.count
            if self._may():
                log.log(level, "%s %s: %s", row["verdict"], row["invariant"], row["summary"])
                self._line(row, level)
            else:
                self._withheld.append(row["id"])
                self._worst = max(self._worst, level)

    def _may(self) -> bool:
        now = self._clock()
        if now - self._minute >= _MINUTE:
            self._minute, self._in_minute = now, 0
        self._in_minute += 1
        return self._in_minute <= _MOST_A_MINUTE

    def repeats(self, violations: Iterable[Violation], *, now: bool = False) -> None:
        """What was withheld, once its minute is over; once an hour (or now) how often each known signature was met since."""
        if self._withheld and (now or self._clock() - self._minute >= _MINUTE):
            why = f"more than {_MOST_A_MINUTE} new signatures in a minute"
            self._line(
                {"withheld": len(self._withheld), "ids": self._withheld, "why": why}, self._worst
            )
            self._withheld, self._worst = [], logging.WARNING
        if not now and self._clock() < self._next_hour:
            return
        self._next_hour = self._clock() + _HOUR
        for violation in violations:
            finding, more = violation.first, violation.count - self._told[violation.first.signature]
            if more > 0:
                self._told[finding.signature] = violation.count
                known = {
                    "id": finding.id,
                    "invariant": finding.invariant,
                    "verdict": finding.verdict.value,
                    "function": finding.function,
                }
                seen = {
                    "repeats": more,
                    "count": violation.count,
                    "first_seen": iso(violation.first_seen),
                }
                row = (
                    known
                    | {"signature": finding.signature}
                    | seen
                    | {"last_seen": iso(violation.last_seen)}
                )
                self._line(row, _LEVELS[finding.verdict])

    def _line(self, row: dict[str, Any], level: int) -> None:
        line = json.dumps(row)
        if self._native:
            fields = {f"RMAPD_{name.upper()}": str(row[name]) for name in _FIELDS if name in row}
            try:
                self._send(
                    {
                        "MESSAGE": line,
                        "PRIORITY": str(priority(level)),
                        "SYSLOG_IDENTIFIER": "rmapd",
                    }
                    | fields
                )
                return
            except OSError as error:
                log.warning("journald does not take an entry (%s): it goes to stdout", error)
        try:
            self._write(line)
        except OSError as error:  # whoever reads stdout went away, or its disk is full: no reason to stop watching
            log.error(
                "stdout does not take a line (%s): what it would say is in the store, if there is one",
                error,
            )
