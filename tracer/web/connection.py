"""The HTTP connection of one client: each request and response has limits of time and size."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import socket
import ssl
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import h11

from tracer.web.http_message import SECURE, Request, Response

MOST_HEADER_BYTES = 16 * 1024
HANDSHAKE_SECONDS = 5.0
REQUEST_SECONDS = 5.0
"""From the first byte of a request to its last; for the first request, from the connection on."""
IDLE_SECONDS = 75.0
"""Between two requests: a Prometheus that scrapes once a minute keeps its connection."""
HASTE_SECONDS = 1.0
"""A sooner request on the same connection is hasty and yields to others: nothing new is known."""
SEND_SECONDS = 20.0
LINGER_SECONDS = 1.0
LINGER_PIECES = 512
MOST_REQUESTS = 1000
_PIECE = 32 * 1024


class Activity(enum.IntEnum):
    """The activity of a connection, the least valuable first."""

    WAITING = 0
    """For a request, or for the rest of one."""
    SENDING = 1
    ANSWERING = 2


class Gone(Exception):
    """The client closed the connection or broke the protocol; it gets no response."""


class Connection:
    """An HTTP/1.1 connection over an accepted socket.

    worth: its activity and the time of the last change in monotonic seconds; the server closes the
    connection with the least worth if it has too many.
    """

    def __init__(self, client: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._set(Activity.WAITING)
        self._client = client
        self._transport: asyncio.WriteTransport | None = None
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADER_BYTES)
        self._bodiless = False

    def _set(self, activity: Activity) -> None:
        self.worth = (activity, self._loop.time())

    async def open(self, tls: ssl.SSLContext | None = None) -> None:
        """Open the stream, with a TLS handshake if there is a context."""
        self._reader = asyncio.StreamReader(limit=_PIECE)
        protocol = asyncio.StreamReaderProtocol(self._reader)
        seconds = HANDSHAKE_SECONDS if tls else None
        transport, _ = await self._loop.connect_accepted_socket(
            lambda: protocol, self._client, ssl=tls, ssl_handshake_timeout=seconds
        )
        self._transport = transport
        self._writer = asyncio.StreamWriter(transport, protocol, self._reader, self._loop)

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The verified certificate of the client, or None."""
        return self._transport.get_extra_info("peercert") if self._transport else None

    async def finish(self) -> None:
        """Close the connection after everything has been sent."""
        self._writer.close()
        async with asyncio.timeout(LINGER_SECONDS):
            await self._writer.wait_closed()

    def close(self) -> None:
        """Close the connection now, and drop unsent data."""
        if self._transport:
            self._transport.abort()
        else:
            self._client.close()

    async def converse(self, answer: Callable[[Request, bool], Awaitable[Response]]) -> None:
        """Serve requests until the client closes, breaks the protocol, or reaches a limit.

        answer: called with each request and whether it is hasty. Gone, TimeoutError or OSError
        when the client goes away or is too slow.
        """
        answered_at = -math.inf
        for number in range(MOST_REQUESTS):
            try:
                async with asyncio.timeout(IDLE_SECONDS if number else REQUEST_SECONDS):
                    await self._first_bytes()
                async with asyncio.timeout(REQUEST_SECONDS):
                    ask = await self._request()
            except h11.RemoteProtocolError as error:
                await self._refuse(
                    Response.plain(error.error_status_hint, f"cannot answer this request: {error}")
                )
                return
            self._set(Activity.ANSWERING)
            answered = await answer(ask, self._loop.time() - answered_at < HASTE_SECONDS)
            self._set(Activity.SENDING)
            await self._send(answered, last=number == MOST_REQUESTS - 1)
            answered_at = self._loop.time()
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()
            self._set(Activity.WAITING)

    async def _first_bytes(self) -> None:
        """Wait for the first bytes of a request, unless they came with the previous one."""
        if not self._http.trailing_data[0]:
            await self._read()

    async def _read(self) -> None:
        data = await self._reader.read(_PIECE)
        self._http.receive_data(data)
        if not data and self._http.their_state is h11.IDLE:
            raise Gone

    async def _event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            await self._read()

    async def _request(self) -> Request:
        """Read a whole request; one with a body is refused."""
        self._bodiless = False
        first = await self._event()
        if not isinstance(first, h11.Request):
            raise Gone
        self._bodiless = first.method == b"HEAD"  # a refusal of it has no body, either
        if first.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("neither HTTP/1.0 nor HTTP/1.1", error_status_hint=505)
        names = {name for name, _ in first.headers}
        if b"transfer-encoding" in names or isinstance(await self._event(), h11.Data):
            raise h11.RemoteProtocolError("with a body", error_status_hint=413)
        path, _, query = first.target.decode("ascii", "replace").partition("?")
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in first.headers}
        return Request(first.method.decode("ascii", "replace"), path, query, headers)

    async def _refuse(self, answer: Response) -> None:
        """Send an error and read on for a second, since closing with unread data is a reset."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await self._send(answer, last=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                for _ in range(LINGER_PIECES):
                    if not await self._reader.read(_PIECE):
                        return

    async def _send(self, answer: Response, *, last: bool) -> None:
        """Send in pieces, so that little memory is held for a slow client, and not for long."""
        headers = {name: value for name, value in (SECURE | answer.headers).items() if value}
        headers |= {
            "Content-Type": answer.kind,
            "Content-Length": str(len(answer.body)),
            "Date": formatdate(usegmt=True),
        }
        if last:
            headers["Connection"] = "close"
        head = h11.Response(
            status_code=answer.status, headers=list(headers.items()), reason=answer.reason.encode()
        )
        body = memoryview(b"" if self._bodiless else answer.body)
        pieces = (
            h11.Data(data=bytes(body[at : at + _PIECE])) for at in range(0, len(body), _PIECE)
        )
        async with asyncio.timeout(SEND_SECONDS):
            for event in (head, *pieces, h11.EndOfMessage()):
                await self._write(event)

    async def _write(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()
