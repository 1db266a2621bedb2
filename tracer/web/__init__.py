"""The HTTP server: /metrics, /-/healthy, /-/ready, the pages and /api/, and who may read them.

It serves the current snapshot and never changes anything. Verdicts and the standing on the pages
are decided in results/.
"""

from __future__ import annotations

from tracer.web.access import Access
from tracer.web.application import Application, Source
from tracer.web.http_message import Request, Response
from tracer.web.server import Server

__all__ = ["Access", "Application", "Request", "Response", "Server", "Source"]
