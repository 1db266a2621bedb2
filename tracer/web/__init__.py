"""The HTTP side: /metrics, /-/healthy, /-/ready, the page and /api/. It reads the current snapshot and changes nothing.

Who may read it is decided here, too. What the page says is decided in results/ and report/.
"""

from __future__ import annotations

from tracer.web.access import Access
from tracer.web.application import Application, Source
from tracer.web.http_message import Request, Response
from tracer.web.server import Server

__all__ = ["Access", "Application", "Request", "Response", "Server", "Source"]
