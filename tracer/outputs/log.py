"""The log of findings: a JSON line for each new signature, and an hourly line if it repeats.

The number of lines is limited, counts are not. A violation is logged as critical and a suspect as
a warning; nothing else is critical, so that an alert on that level means a defect of the kernel.

Under systemd (JOURNAL_STREAM) a line goes to journald by its native protocol, with fields to
search for: `journalctl RMAPD_INVARIANT=L1`. libsystemd is not used: it blocks while journald
hangs, and the checking thread must not block.
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
from tracer.logs import fields, is_journal, priority
from tracer.results.json_form import iso, violation_json

log = logging.getLogger("rmapd")

_SOCKET = "/run/systemd/journal/socket"
_FIELDS = ("id", "invariant", "verdict", "function", "signature", "count")
MOST_LINES_A_MINUTE = 30
"""New signatures that get a line of their own in one minute; read at each line."""
_HOUR, _MINUTE = 3600.0, 60.0
_LEVELS = {Verdict.VIOLATED: logging.CRITICAL, Verdict.SUSPECT: logging.WARNING}


def datagram(fields: Mapping[str, str]) -> bytes:
    """Encode fields for journald (systemd's JOURNAL_NATIVE_PROTOCOL).

    A value with a newline is preceded by its length as 64 bits, little endian.
    """
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
    """Send one entry to journald without blocking; OSError if it is not accepted."""
    with socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    ) as out:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        out.sendto(datagram(fields), address)


class FindingLog:
    """The log of findings of one run.

    clock: monotonic seconds. write: writes a line to stdout. send: sends fields to journald.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        environ: Mapping[str, str] = os.environ,
        write: Callable[[str], None] = lambda line: print(line, flush=True),
        send: Callable[[Mapping[str, str]], None] = to_journald,
    ) -> None:
        self._clock, self._write, self._send = clock, write, send
        self._native = is_journal(environ, 1)
        self._logged: Counter[str] = Counter()  # count by signature
        self._next_hour = clock() + _HOUR
        self._minute, self._in_minute = clock(), 0
        self._withheld: list[str] = []
        self._withheld_level = logging.WARNING

    def new(self, violations: Iterable[Violation]) -> None:
        """Log a line for each new signature; beyond 30 in a minute keep them for one line."""
        for violation in violations:
            row, level = violation_json(violation), _LEVELS[violation.first.verdict]
            self._logged[violation.first.signature] = violation.count
            if self._may_log():
                named = {name: row[name] for name in _FIELDS}
                words = row["verdict"], row["invariant"], row["summary"]
                log.log(level, "%s %s: %s", *words, extra=fields(**named))
                self._line(row, level)
            else:
                self._withheld.append(row["id"])
                self._withheld_level = max(self._withheld_level, level)

    def _may_log(self) -> bool:
        now = self._clock()
        if now - self._minute >= _MINUTE:
            self._minute, self._in_minute = now, 0
        self._in_minute += 1
        return self._in_minute <= MOST_LINES_A_MINUTE

    def repeats(self, violations: Iterable[Violation], *, now: bool = False) -> None:
        """Log withheld ids once their minute is over, and hourly the repeats of each signature.

        violations: all of the run. now: log the repeats now, at the end of the run.
        """
        if self._withheld and (now or self._clock() - self._minute >= _MINUTE):
            why = f"more than {MOST_LINES_A_MINUTE} new signatures in a minute"
            self._line(
                {"withheld": len(self._withheld), "ids": self._withheld, "why": why},
                self._withheld_level,
            )
            self._withheld, self._withheld_level = [], logging.WARNING
        if not now and self._clock() < self._next_hour:
            return
        self._next_hour = self._clock() + _HOUR
        for violation in violations:
            finding = violation.first
            more = violation.count - self._logged[finding.signature]
            if more > 0:
                self._logged[finding.signature] = violation.count
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
            named = {f"RMAPD_{name.upper()}": str(row[name]) for name in _FIELDS if name in row}
            try:
                self._send(
                    {
                        "MESSAGE": line,
                        "PRIORITY": str(priority(level)),
                        "SYSLOG_IDENTIFIER": "rmapd",
                    }
                    | named
                )
                return
            except OSError as error:
                log.warning("journald rejects an entry (%s): writing it to stdout", error)
        try:
            self._write(line)
        except OSError as error:  # the reader is gone or the disk is full: keep checking
            log.error(
                "cannot write a finding to stdout (%s): it is in the store, if there is one", error
            )
