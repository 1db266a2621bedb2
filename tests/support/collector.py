"""An OpenTelemetry collector on loopback that decodes OTLP with OpenTelemetry's own classes."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)


@dataclass
class Collector:
    """The collector's state.

    received: the log records. statuses: of the next responses, then 200. hold: while it is set, no
    request is answered.
    """

    received: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    requests: int = 0
    hold: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def take(self, body: bytes) -> None:
        """Decode the body of a request and append its records."""
        for resource_logs in ExportLogsServiceRequest.FromString(body).resource_logs:
            resource = {pair.key: _value(pair.value) for pair in resource_logs.resource.attributes}
            for scope_logs in resource_logs.scope_logs:
                for record in scope_logs.log_records:
                    attributes = {pair.key: _value(pair.value) for pair in record.attributes}
                    self.received.append(
                        {
                            "resource": resource,
                            "scope": scope_logs.scope.name,
                            "record": record,
                            "attributes": attributes,
                        }
                    )


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@contextlib.contextmanager
def collector(port: int = 0) -> Iterator[Collector]:
    """Run a collector on this port, or on a free one."""
    made, closing = Collector(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            made.requests += 1
            while made.hold.is_set() and not closing.wait(0.02):
                pass
            status = made.statuses.pop(0) if made.statuses else 200
            if status == 200:
                made.take(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(ExportLogsServiceResponse().SerializeToString())

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        made.url = f"http://127.0.0.1:{server.server_port}/v1/logs"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            closing.set()
            server.shutdown()
            thread.join()
