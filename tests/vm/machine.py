"""The machine that a guest is emulated as."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A machine for an emulator.

    memory: as "3G"; it is spread over the nodes. options: of QEMU. append: parameters of the
    kernel. memory_tags: of arm64 (MTE).
    """

    memory: str
    nodes: int
    cpus: int
    options: list[str]
    append: str
    memory_tags: bool = False

    def node_mb(self) -> int:
        """Return the MiB of a node."""
        return int(self.memory.rstrip("G")) * 1024 // self.nodes
