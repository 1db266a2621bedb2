"""Epochs of recording: a change of hooks begins a new one, so no half of anything is counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from tracer.bpf.maps import Table
from tracer.tables.fork_windows import ForkWindows
from tracer.tables.params import Params


class Epochs:
    """The epochs in struct params, and the rows that a change of hooks makes invalid."""

    def __init__(
        self, maps: Mapping[str, Table], params: Params, fork_windows: ForkWindows
    ) -> None:
        self._holds, self._params, self._fork_windows = maps.get("holds"), params, fork_windows

    @contextlib.contextmanager
    def changing_hooks(self, *, windows: bool, mmap_locks: bool) -> Iterator[None]:
        """Attach and detach hooks inside this context.

        The epoch is odd inside the context and has a new even value after it. Windows and
        mmap_locks that began in another epoch are not counted, because one of their hooks may not
        have run.

        windows: hooks of windows or rwsems change. mmap_locks: hooks of mmap_lock change.
        """
        now = self._params.get()
        epochs = {"window_epoch": now.window_epoch} if windows else {}
        epochs |= {"mmap_epoch": now.mmap_epoch} if mmap_locks else {}
        self._params.set(**{name: epoch + 1 for name, epoch in epochs.items()})
        try:
            yield
        finally:
            if windows and self._holds:
                for key, _ in list(self._holds.items()):
                    self._holds.delete(key)
            if mmap_locks:
                self._fork_windows.close_open()
            self._params.set(**{name: epoch + 2 for name, epoch in epochs.items()})
