"""`rmapd events`: the findings of a running daemon as JSON lines, each once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tracer.client.connection import Client
from tracer.errors import Unreachable

log = logging.getLogger("rmapd")


class Events:
    """Reads findings, and remembers those that it has returned.

    A finding is the same one if it has the same id, also after a restart of the daemon: the id is
    made of invariant, verdict, function and shape. updates: return it again, without evidence, when
    it was met again.
    """

    def __init__(self, client: Client, *, updates: bool = False) -> None:
        self._client, self._updates = client, updates
        self._counts: dict[str, int] = {}  # of this run
        self._known: set[str] = set()
        self._run, self._beyond = "", 0

    def look(self) -> Iterator[dict[str, Any]]:
        """Yield what is new, the oldest first. Raises RmapdError where the daemon gives no answer.

        What was yielded is not yielded again, even if this raises.
        """
        seen = self._client.status()
        self._note_run(seen.status.run, seen.status.host)
        head = {"host": seen.exact["host"], "run": seen.exact["run"]}
        for brief in sorted(seen.exact["findings"], key=lambda one: str(one["first_seen"])):
            yield from self._one(brief, head)
        beyond = sum(seen.status.beyond.values())
        if beyond > self._beyond:
            log.warning(
                "%d findings are counted without evidence and are not printed:"
                " the daemon keeps no more distinct ones",
                beyond,
            )
        self._beyond = beyond

    def _one(self, brief: Mapping[str, Any], head: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        id, count = brief["id"], int(brief["count"])
        if id not in self._known:
            whole = self._client.violation(id)
            if whole is None:  # the daemon was restarted meanwhile: the next look decides
                return
            self._known.add(id)
            self._counts[id] = int(whole["count"])
            yield {"event": "finding", **head, **whole}
        elif count != self._counts.get(id):
            self._counts[id] = count
            if self._updates:
                yield {"event": "update", **head, **brief}

    def _note_run(self, run: str, host: str) -> None:
        """Report a restart: the counts of the new run begin at 0."""
        if self._run and run != self._run:
            log.warning(
                "rmapd on %s was restarted: what its last run found at its end is in its log and"
                " store; counts begin anew",
                host,
            )
            self._counts, self._beyond = {}, 0
        self._run = run


def follow(
    events: Events,
    emit: Callable[[dict[str, Any]], None],
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Emit findings as they come, until an exception ends it; look every `seconds`.

    A daemon that gives no answer is waited for. Other errors are raised: they would come again.
    """
    silent = False
    while True:
        try:
            for one in events.look():
                emit(one)
            if silent:
                log.warning("rmapd answers again")
            silent = False
        except Unreachable as error:
            if not silent:
                log.warning("%s; waiting", error.in_a_line)
            silent = True
        sleep(seconds)
