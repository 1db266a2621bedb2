"""A listening socket and the thread that serves it. Clients are bounded in number, time and CPU; who is slow loses its place, not ours."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from types import TracebackType

from tracer.errors import RmapdError
from tracer.web.budget import Budget
from tracer.web.connection import Connection, Gone
from tracer.web.message import Answer, Answering, Ask

log = logging.getLogger("rmapd")

MOST_CONNECTIONS = 64
_BACKLOG = 128
_ENDS = (Gone, TimeoutError, OSError, EOFError)
"""How a conversation ends that was not simply over: not worth a line in the log."""


def listening(address: tuple[str, int]) -> socket.socket:
    """A socket bound to this address; RmapdError says what is in the way."""
    try:
        family, kind, number, _, where = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, number)
    except OSError as error:
        raise RmapdError(f"cannot listen on {address[0]}:{address[1]}", why=str(error), hint="--listen with another address") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        hint = "--listen with another port, or stop what uses it"
        raise RmapdError(f"cannot listen on {address[0]}:{address[1]}", why=error.strerror or str(error), hint=hint) from error
    return made


class Server:
    """Bound on construction, so that a busy port is an error before anything is attached; serves while the context is open."""

    def __init__(self, address: tuple[str, int], application: Answering) -> None:
        self._application = application
        self._socket = listening(address)
        self.port = int(self._socket.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rmapd-http", daemon=True)
        self._talks: dict[asyncio.Task[None], Connection] = {}

    def __enter__(self) -> Server:
        self._accepting = self._loop.create_task(self._accept())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._accepting.cancel)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        """The thread: all that is of the server happens here."""
        self._budget = Budget()
        self._loop.set_exception_handler(lambda _, context: log.debug("http: %s", context.get("message")))
        with contextlib.closing(self._loop), self._socket:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._accepting)
            self._loop.run_until_complete(self._hang_up())

    async def _hang_up(self) -> None:
        talks = list(self._talks)
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            await self._budget.wait()
            try:
                client, _ = await self._loop.sock_accept(self._socket)
            except OSError as error:
                log.warning("http: cannot take a connection: %s", error)
                await asyncio.sleep(1)
                continue
            self._make_room()
            connection = Connection(client)
            talk = self._loop.create_task(self._talk(connection))
            self._talks[talk] = connection
            talk.add_done_callback(self._talks.pop)

    def _make_room(self) -> None:
        """Give up the connection that did nothing useful for longest, where there are too many."""
        open_talks = [(one.since, number, talk) for number, (talk, one) in enumerate(self._talks.items()) if not talk.cancelling()]
        if len(open_talks) >= MOST_CONNECTIONS:
            min(open_talks)[2].cancel()

    async def _talk(self, connection: Connection) -> None:
        with contextlib.suppress(*_ENDS):
            try:
                await connection.open()
                await connection.converse(self._answer)
                await connection.finish()
            finally:
                connection.close()

    async def _answer(self, ask: Ask) -> Answer:
        await self._budget.wait()
        try:
            answer = self._application(ask)
        except Exception:
            log.exception("http: %s %s failed", ask.method, ask.path)
            answer = Answer.say(500, "rmapd failed to answer this; its log says why")
        return answer
