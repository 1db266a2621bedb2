"""What is done after a judge's death, by another process: the books that the kernel still has are judged from where it was.

The maps and the programs that are run on demand are open; nothing is attached any more.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tracer.attach.attach_process import AttachOutcome, taken_over
from tracer.config import Config
from tracer.daemon.recorder import resume
from tracer.daemon.session import Session, probes_folder, running_kernel
from tracer.errors import RmapdError
from tracer.kernel.running import Kernel
from tracer.supervision import handed_down
from tracer.supervision.checkpoint import Left, Memory, read
from tracer.tables.c_structs import Layout, Layouts


def put_back(layout: Layout, before: bytes, now: bytes) -> bytes:
    """A row of the ledger as it was before it was taken out, with what the kernel has inserted since: it began another row then. now: the
    row that is there, the same one where the judge died before it took it."""
    was, later = layout.unpack(before), layout.unpack(now)
    if was.first_ns == later.first_ns:
        return now
    return layout.pack(**vars(later) | {"first_ns": was.first_ns, "count": was.count + later.count})


class Aftermath(Session):
    """A session over what another has attached. Use as a context manager; stop() judges, snapshot() has all that is known then."""

    def __init__(
        self, config: Config, kernel: Kernel, down: handed_down.HandedDown, left: Left
    ) -> None:
        super().__init__(config, kernel)
        self._down, self.left = down, left

    def _attach(self) -> None:
        layouts, answer = Layouts.read(probes_folder() / "include" / "shared.h"), self._down.answer
        attached = AttachOutcome(taken_over(answer, self._down.fds), answer.page_size, answer.enums)
        for point in attached.probes.points.get("tasks", []):
            point.link = point.link or point.program.attach("iter", "")
        self._build(attached, layouts, self.left.state.level or self._down.level)
        self._started_ns = self._down.started_ns
        self.tables.params.set(gate=0)
        for name, key, value in self.left.rows:
            now = None if name == "frozen" else self.loaded.maps[name].lookup(key)
            self.loaded.maps[name].update(
                key, put_back(layouts.structs["ledger_row"], value, now) if now else value
            )
        resume(self.left, self.judge, self.protocol_events.rulings)
        self.judge.read_events(
            [event for at, event in self.left.events if at < self._ring.position]
        )

    def _calibrate(self, *_: object) -> str:
        """As the dead judge found it: what it found is in the maps."""
        return self._down.oracle_reason


def aftermath(
    config: Config, memory: Memory, descriptors: Mapping[str, int] | None = None
) -> Aftermath:
    """Of the judge that wrote this memory. descriptors: by name, where they are not those that it had. RmapdError where there is nothing
    to judge, or not all that it takes."""
    try:
        left = read(memory)
        if not left.state.attached:
            raise RmapdError("the judge had attached nothing yet")
        down = handed_down.read(left.state.attached)
        return Aftermath(
            config,
            running_kernel(),
            down if descriptors is None else handed_down.taken_over(down, descriptors),
            left,
        )
    except (msgspec.DecodeError, KeyError) as error:
        raise RmapdError(
            "what a dead judge has left cannot be read", why=f"{type(error).__name__}: {error}"
        ) from error
