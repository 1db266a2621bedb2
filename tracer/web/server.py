"""The HTTP server: a listening socket and a thread with limits of clients, time and CPU."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import threading
from dataclasses import replace
from typing import Any

from tracer.errors import RmapdError, Temporary, of_os
from tracer.web.access import Access, is_loopback
from tracer.web.basic_auth import Admission, Logins
from tracer.web.connection import Connection, Gone
from tracer.web.cpu_budget import Budget
from tracer.web.http_message import SECURE, Answering, Request, Response
from tracer.web.tls import is_accepted
from tracer.web.web_config import Rules

log = logging.getLogger("rmapd")

MOST_CONNECTIONS = 64
_GRACE_SECONDS = 0.1
"""A connection is not closed for room within this time after its last change of activity."""
_BACKLOG = 1024
_ACCEPT_RESERVE_SECONDS = 0.1
"""CPU time that accepting leaves to requests of open connections."""
_HASTY_RESERVE_SECONDS = 0.2
"""CPU time that hasty requests leave to everything else."""
_CHALLENGE = 'Basic realm="rmapd", charset="UTF-8"'
_ENDS = (Gone, TimeoutError, OSError, EOFError)
"""Errors that end a connection and are not logged."""


def listening(address: tuple[str, int]) -> socket.socket:
    """Return a listening socket for this address; RmapdError if it cannot be bound."""
    try:
        family, kind, number, _, where = socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, number)
    except OSError as error:
        unnamed = (
            Temporary
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            else RmapdError
        )
        raise unnamed(
            f"cannot listen on {address[0]}:{address[1]}",
            why=str(error),
            hint="--listen with another address",
        ) from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        hint = "--listen with another port, or stop what uses it"
        raise of_os(error, f"cannot listen on {address[0]}:{address[1]}", hint) from error
    return made


class Server:
    """Serves an application while its context is open.

    The address is bound by the constructor, so that a busy port is an error before probes are
    attached.
    """

    def __init__(
        self,
        address: tuple[str, int],
        application: Answering,
        access: Access | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._application, self._host = application, address[0]
        self.access = access or Access(None)
        self._socket = listening(address)
        self.port = int(self._socket.getsockname()[1])
        self._loop = loop or asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rmapd-http", daemon=True)
        self._talks: dict[asyncio.Task[None], Connection] = {}

    def __enter__(self) -> Server:
        self._accepting = self._loop.create_task(self._accept())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: a defect has ended the thread
            self._loop.call_soon_threadsafe(self._accepting.cancel)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        """Run the server's event loop, in its thread."""
        self._budget, self._logins = Budget(clock=self._loop.time), Logins(self._loop.time)
        self._loop.set_exception_handler(_log_unhandled)
        with contextlib.closing(self._loop), self._socket:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._accepting)
            self._loop.run_until_complete(self._hang_up())

    async def _hang_up(self) -> None:
        talks = list(self._talks)
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        self._logins.close()

    async def _accept(self) -> None:
        while True:
            await self._budget.wait(_ACCEPT_RESERVE_SECONDS)
            try:
                client, _ = await self._loop.sock_accept(self._socket)
            except OSError as error:
                log.warning("http: cannot accept a connection: %s", error)
                await asyncio.sleep(1)
                continue
            await self._make_room()
            connection = Connection(client)
            talk = self._loop.create_task(self._talk(connection))
            self._talks[talk] = connection
            talk.add_done_callback(self._end)

    def _end(self, talk: asyncio.Task[None]) -> None:
        """Close a connection whose task ended, even if the task never ran."""
        self._talks.pop(talk).close()
        if not talk.cancelled() and (error := talk.exception()):
            log.error(
                "a defect of rmapd ended a connection: %s: %s",
                type(error).__name__,
                error,
                exc_info=error,
            )

    async def _make_room(self) -> None:
        """Close the connection with the least worth if there are too many.

        Waiting connections go before those that send, the longest idle first. Each has a tenth of
        a second first, so that a flood of connections does not displace one with a request.
        """
        while True:
            await asyncio.sleep(0)  # accepting runs no other task while connections are pending
            kept = {talk: one.worth for talk, one in self._talks.items() if not talk.cancelling()}
            if len(kept) < MOST_CONNECTIONS:
                return
            least = min(kept, key=kept.__getitem__)
            remaining = kept[least][1] + _GRACE_SECONDS - self._loop.time()
            if remaining <= 0:
                least.cancel()
                return
            await asyncio.sleep(remaining)

    async def _talk(self, connection: Connection) -> None:
        with contextlib.suppress(*_ENDS):
            self.access.refresh()
            await connection.open(self.access.context)
            named = self.access.rules.tls
            if named and not is_accepted(connection.certificate, named.client_allowed_sans):
                return
            await connection.converse(self._answer)
            await connection.finish()

    async def _answer(self, ask: Request, hasty: bool) -> Response:
        await self._budget.wait(_HASTY_RESERVE_SECONDS if hasty else 0.0)
        self.access.refresh()
        rules = self.access.rules
        answer = await self._refusal(ask, rules) or self._apply(ask)
        return replace(answer, headers={**SECURE, **answer.headers, **rules.headers})

    async def _refusal(self, ask: Request, rules: Rules) -> Response | None:
        """Return the response that refuses the request, or None if it may be answered."""
        if (
            not rules.identifies_readers
            and is_loopback(self._host)
            and not _by_address(ask.headers.get("host", ""))
        ):
            return Response.plain(
                421,
                "use an address or localhost: any other host name may be an attack (DNS rebinding)",
            )
        if not rules.users:
            return None
        entry = await self._logins.check(rules.users, ask.headers.get("authorization", ""))
        if entry is Admission.BUSY:
            return Response.plain(429, "too many logins at the same time", Retry_After="2")
        return (
            None
            if entry is Admission.YES
            else Response.plain(
                401, "a user and a password are needed", WWW_Authenticate=_CHALLENGE
            )
        )

    def _apply(self, ask: Request) -> Response:
        try:
            return self._application(ask)
        except Exception:
            log.exception("http: %s %s failed", ask.method, ask.path[:200])
            return Response.plain(500, "rmapd cannot answer this request; the log has the error")


def _log_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that no task handled: a defect, unless the client went away."""
    error = context.get("exception")
    if error is None or isinstance(error, _ENDS):
        log.debug("http: %s", context.get("message"))
    else:
        log.error("a defect of rmapd: %s", context.get("message"), exc_info=error)


def _by_address(host: str) -> bool:
    """Return whether a Host header is an address or localhost.

    A web page of another host can point its own name at this address (DNS rebinding), but not
    these.
    """
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        return bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return False
