"""One client: requests read, answered and sent, each in bounded time and space."""

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
"""From a request's first byte to its last; for the first request, from the connection."""
IDLE_SECONDS = 75.0
"""Between two requests. A Prometheus that scrapes once a minute keeps its connection."""
HASTE_SECONDS = 1.0
"""Nothing new is known before that: who asks again sooner on the same connection lets others go first."""
SEND_SECONDS = 20.0
LINGER_SECONDS = 1.0
LINGER_PIECES = 512
MOST_REQUESTS = 1000
_PIECE = 32 * 1024


class Doing(enum.IntEnum):
    """What a connection is at, the least valuable first."""

    WAITING = 0
    """for a request, or for the rest of one"""
    SENDING = 1
    ANSWERING = 2


class Gone(Exception):
    """The client went away or broke the protocol: there is nothing more to say to it."""


class Connection:
    """Speaks HTTP/1.1 over a stream. `worth`: what it is at and since when, for whoever looks for a connection to give up."""

    def __init__(self, client: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._is(Doing.WAITING)
        self._client = client
        self._transport: asyncio.WriteTransport | None = None
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADER_BYTES)
        self._bodiless = False

    def _is(self, doing: Doing) -> None:
        self.worth = (doing, self._loop.time())

    async def open(self, tls: ssl.SSLContext | None = None) -> None:
        """Shake hands, where there is TLS."""
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
        """The client's, where it showed one that was verified."""
        return self._transport.get_extra_info("peercert") if self._transport else None

    async def finish(self) -> None:
        """Close once all is sent."""
        self._writer.close()
        async with asyncio.timeout(LINGER_SECONDS):
            await self._writer.wait_closed()

    def close(self) -> None:
        """At once: what the client has not taken by now is dropped with it."""
        if self._transport:
            self._transport.abort()
        else:
            self._client.close()

    async def converse(self, answer: Callable[[Request, bool], Awaitable[Response]]) -> None:
        """Until the client closes, breaks the protocol, is too slow, or has asked enough. answer() is told of who asks again in haste."""
        answered_at = -math.inf
        for number in range(MOST_REQUESTS):
            try:
                async with asyncio.timeout(IDLE_SECONDS if number else REQUEST_SECONDS):
                    await self._some()
                async with asyncio.timeout(REQUEST_SECONDS):
                    ask = await self._ask()
            except h11.RemoteProtocolError as error:
                await self._refuse(
                    Response.say(
                        error.error_status_hint, f"not a request that is answered here: {error}"
                    )
                )
                return
            self._is(Doing.ANSWERING)
            answered = await answer(ask, self._loop.time() - answered_at < HASTE_SECONDS)
            self._is(Doing.SENDING)
            await self._send(answered, last=number == MOST_REQUESTS - 1)
            answered_at = self._loop.time()
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()
            self._is(Doing.WAITING)

    async def _some(self) -> None:
        """Wait for the first bytes of a request, unless they came with the one before."""
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

    async def _ask(self) -> Request:
        """A whole request. A body is refused: nothing here takes one."""
        first = await self._event()
        if not isinstance(first, h11.Request):
            raise Gone
        if first.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("neither HTTP/1.0 nor HTTP/1.1", error_status_hint=505)
        names = {name for name, _ in first.headers}
        if b"transfer-encoding" in names or isinstance(await self._event(), h11.Data):
            raise h11.RemoteProtocolError("with a body", error_status_hint=413)
        self._bodiless = first.method == b"HEAD"
        path, _, query = first.target.decode("ascii", "replace").partition("?")
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in first.headers}
        return Request(first.method.decode("ascii", "replace"), path, query, headers)

    async def _refuse(self, answer: Response) -> None:
        """Say why, and let a client that is still sending hear it: a socket closed with bytes unread is a reset."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await self._send(answer, last=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                for _ in range(LINGER_PIECES):
                    if not await self._reader.read(_PIECE):
                        return

    async def _send(self, answer: Response, *, last: bool) -> None:
        """In pieces, so that little is held for a client that reads slowly, and not for long."""
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
