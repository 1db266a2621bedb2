"""Send violations as OTLP logs to an OpenTelemetry collector, with the optional extra `otlp`.

A bounded queue and a thread that sends and retries keep the checking thread from waiting.
Violations that do not fit or are never accepted are counted; the log of the host has them too.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import tracer
from tracer.errors import RmapdError
from tracer.printable import without_login

log = logging.getLogger("rmapd")

_QUEUE_SIZE = 256
_TRIES = 8
_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0
_END_SECONDS = 5.0
"""How long the end of a run waits for the queue to become empty."""


Exporter = Callable[[Mapping[str, Any]], bool]
"""Sends one violation (the keys of a report's `violations`); returns whether it was accepted.

It may block, and it may raise if the violation can never be sent.
"""


class Sender:
    """A queue of violations and the thread that sends them; a context manager.

    exporter: None to send nothing. queue_size: violations that may wait. wait_seconds: before the
    second attempt; each further wait is twice as long, up to a minute.
    """

    def __init__(
        self,
        exporter: Exporter | None,
        queue_size: int = _QUEUE_SIZE,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        self._exporter, self._wait_seconds = exporter, wait_seconds
        self._waiting: queue.Queue[Mapping[str, Any]] = queue.Queue(queue_size)
        self._counts = {"sent": 0, "failed": 0, "dropped": 0}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rmapd-otlp", daemon=True)

    def offer(self, violation: Mapping[str, Any]) -> None:
        """Queue a violation, or count it as dropped if the queue is full; never blocks."""
        if self._exporter is None:
            return
        try:
            self._waiting.put_nowait(violation)
        except queue.Full:
            self._counts["dropped"] += 1

    def counts(self) -> dict[str, int]:
        """Return the number of violations by result, or {} without an exporter."""
        return dict(self._counts) if self._exporter else {}

    def __enter__(self) -> Sender:
        if self._exporter:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._exporter:
            return
        end = time.monotonic() + _END_SECONDS
        while self._waiting.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.02)
        self._closing.set()
        if left := self._waiting.unfinished_tasks:
            self._counts["dropped"] += left
            log.warning(
                "OTLP: %d violations were not accepted before the end of the run; "
                "they are in this log",
                left,
            )

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                violation = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            result = (
                "sent"
                if self._exporter and self._delivered(self._exporter, violation)
                else "failed"
            )
            if not self._closing.is_set():
                self._counts[result] += 1
                self._waiting.task_done()

    def _delivered(self, export: Exporter, violation: Mapping[str, Any]) -> bool:
        wait = self._wait_seconds
        for number in range(_TRIES):
            if number and self._closing.wait(wait):
                return False
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)
            try:
                if export(violation):
                    return True
            except Exception as error:
                log.warning(
                    "OTLP: cannot send %s: %s: %s", violation["id"], type(error).__name__, error
                )
                return False
        log.warning(
            "OTLP: %s was not accepted in %d attempts; it is in this log", violation["id"], _TRIES
        )
        return False


def sender(endpoint: str, timeout_seconds: float, kernel: str) -> Sender:
    """Return a sender to the collector at this URL; an empty URL sends nothing.

    timeout_seconds: of one request. kernel: the release, an attribute of the resource. RmapdError
    if the extra is not installed.
    """
    return Sender(exporter(endpoint, timeout_seconds, kernel) if endpoint else None)


def exporter(endpoint: str, timeout_seconds: float, kernel: str) -> Exporter:
    """Return a function that sends one violation; arguments and errors are those of sender()."""
    try:
        from opentelemetry._logs import LogRecord, SeverityNumber
        from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
        from opentelemetry.sdk._logs import ReadableLogRecord
        from opentelemetry.sdk._logs.export import LogRecordExportResult
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    except ImportError as error:
        raise RmapdError(
            f"otlp_endpoint is {without_login(endpoint)}, but OTLP is not installed",
            why=str(error),
            hint="pip install 'rmapd[otlp]', or otlp_endpoint = \"\"",
        ) from error
    client = OTLPLogExporter(endpoint=endpoint, timeout=timeout_seconds)
    host, version = os.uname().nodename, tracer.__version__
    named = {
        "service.name": "rmapd",
        "service.version": version,
        "service.instance.id": host,
        "host.name": host,
    }
    resource = Resource.create({**named, "os.type": "linux", "os.version": kernel})
    scope = InstrumentationScope("rmapd", version)

    def send(violation: Mapping[str, Any]) -> bool:
        violated = violation["verdict"] == "violated"
        record = LogRecord(
            timestamp=_nanoseconds(violation["first_seen"]),
            observed_timestamp=time.time_ns(),
            severity_number=SeverityNumber.ERROR if violated else SeverityNumber.WARN,
            severity_text="ERROR" if violated else "WARN",
            event_name="rmapd.violation",
            body=violation["summary"],
            attributes=attributes(violation),
        )
        return (
            client.export([ReadableLogRecord(record, resource, scope)])
            is LogRecordExportResult.SUCCESS
        )

    return send


def attributes(violation: Mapping[str, Any]) -> dict[str, str | int]:
    """Return a violation as flat attributes; trail, evidence and stack are JSON texts."""
    plain = {
        f"rmapd.{name}": violation[name]
        for name in ("id", "invariant", "verdict", "function", "signature", "count", "protocol")
    }
    task = {f"rmapd.task.{name}": value for name, value in violation["task"].items()}
    structured = {
        f"rmapd.{name}": json.dumps(violation[name]) for name in ("trail", "evidence", "stack")
    }
    return plain | task | structured


def _nanoseconds(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1_000_000) * 1000
