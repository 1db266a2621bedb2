"""Send findings to the store, then to the log, then to the OTLP collector.

The checking thread calls keep() once a second and deliver() whenever it makes a snapshot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracer.config import STORE, Config
from tracer.errors import RmapdError
from tracer.invariants.verdict import Finding, Tally
from tracer.outputs.log import FindingLog
from tracer.outputs.otlp import Sender
from tracer.outputs.store.database import ForeignDatabase
from tracer.outputs.store.writer import Store
from tracer.process.users import User, files_as, hand_over
from tracer.results.json_form import as_json, violation_json
from tracer.results.snapshot import Snapshot

log = logging.getLogger("rmapd")

_RUN_SECONDS = 60.0
"""The interval at which the report of the run is stored."""


def open_store(
    config: Config, kernel: str, user: User | None = None, **earlier: Any
) -> Store | None:
    """Open the configured store as the user that the daemon becomes.

    user: that user; the default store is given to it. earlier: arguments run, counted and rest of
    Store, to continue a run. Returns None if the configuration has no store, or if the default one
    cannot be opened. RmapdError if a store that was asked for cannot be opened.
    """
    path = Path(config.store)
    if not config.store:
        log.info("no store: findings are in the log only")
        return None
    if config.store != STORE:
        return _opened(config, kernel, user, earlier)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        hand_over(path.parent, path.name, user)
        return _opened(config, kernel, user, earlier)
    except (OSError, RmapdError) as error:
        reason = error.in_a_line if isinstance(error, RmapdError) else error
        log.warning(
            "no store: %s; findings are in the log only. --store FILE uses another place", reason
        )
        return None


def _opened(config: Config, kernel: str, user: User | None, earlier: Mapping[str, Any]) -> Store:
    try:
        with files_as(user):
            return Store(
                Path(config.store),
                kernel,
                config.store_bytes,
                config.store_days,
                must=True,
                booted=time.time() - time.clock_gettime(time.CLOCK_BOOTTIME),
                **earlier,
            )
    except ForeignDatabase:
        raise
    except RmapdError as error:
        why = f"{error.why}, to the user {user.name} that rmapd becomes" if user else error.why
        raise RmapdError(error.what, why=why, hint=error.hint) from error


class Sinks:
    """The store, the log of findings and the OTLP sender of one run."""

    def __init__(self, store: Store | None, journal: FindingLog, collector: Sender) -> None:
        self._store, self._journal, self._collector = store, journal, collector
        self._next_run = 0.0

    @property
    def run(self) -> str:
        """The id of the run in the store, or an empty text without a store."""
        return self._store.run if self._store else ""

    @property
    def stored(self) -> bool:
        """Whether there is a store and everything is written to it."""
        return self._store is not None and not self._store.state.unwritten

    def keep(self, tally: Tally) -> None:
        """Store the counts of this tick, so that a kill loses at most one second of them."""
        if self._store:
            self._store.keep(tally.violations.values(), tally.rest)

    def deliver(
        self,
        tally: Tally,
        new: Sequence[Finding],
        snapshot: Snapshot,
        *,
        ended: bool = False,
        early: str = "",
    ) -> Snapshot:
        """Store, log and send findings; return the snapshot with the state of store and sender.

        new: findings with new signatures, each given once; they are in `tally` too. ended: the run
        ends now. early: why it ended early, if it did.
        """
        self.keep(tally)
        if self._store and (ended or time.monotonic() >= self._next_run):
            self._next_run = time.monotonic() + _RUN_SECONDS
            report = as_json(snapshot, ["rmapd", "run"], 0) | (
                {"ended_early": {"reason": early}} if early else {}
            )
            self._store.keep_run(report, ended=ended)
        found = [tally.violations[finding.signature] for finding in new]
        self._journal.new(found)
        for violation in found:
            self._collector.offer(violation_json(violation))
        self._journal.repeats(tally.violations.values(), now=ended)
        return replace(
            snapshot,
            store=self._store.state if self._store else None,
            otlp=self._collector.counts(),
        )

    def close(self) -> None:
        """Close the store, after a last attempt to write."""
        if self._store:
            self._store.close()
