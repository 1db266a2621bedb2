"""The part of the configuration that sizes BPF maps, and how a key gets its text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from tracer.errors import RmapdError


def help_text(meaning: str) -> msgspec.Meta:
    """Attach the text of the example and of docs/CONFIGURATION.md to a key."""
    return msgspec.Meta(description=meaning)


class Maps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of the BPF maps: they bound kernel memory. A full map makes checks unverifiable."""

    ledger_rows: Annotated[int, help_text("one row for each outstanding migration entry")] = 65536
    frozen_rows: Annotated[
        int, help_text("one row for each PMD that a THP split turned into migration entries")
    ] = 1024
    visit_rows: Annotated[
        int, help_text("one row for each VMA visited by a second rmap walk; the oldest is replaced")
    ] = 131072
    migration_rows: Annotated[int, help_text("one row for each task inside migrate_pages()")] = 4096
    mm_rows: Annotated[
        int, help_text("one row for each mm between the exit of its last task and exit_mmap()")
    ] = 16384
    order_rows: Annotated[
        int, help_text("one row for each pair of nested mmap_locks; the oldest is replaced")
    ] = 4096
    stack_rows: Annotated[
        int,
        help_text(
            "one row for each distinct kernel stack of an event, and as many again for "
            "windows in the flight recorder; a power of two"
        ),
    ] = 4096
    ring_pages: Annotated[int, help_text("pages of the event ring; a power of two")] = 16
    protocol_rows: Annotated[int, help_text("one row for each distinct protocol")] = 4096
    hold_rows: Annotated[
        int, help_text("one row for each rwsem held by a task in a window; the oldest is replaced")
    ] = 16384
    flight_rows: Annotated[
        int, help_text("windows in the flight recorder of each CPU; a power of two")
    ] = 1024

    def sizes(self) -> dict[str, int]:
        """Return the rows by the macro names of the BPF programs, with the fixed sizes."""
        fixed = {"FORK_WINDOWS": 32, "QUERIES": 256, "HITS": 8192, "UPPERS": 8192, "LEAVES": 16384}
        return {name.upper(): getattr(self, name) for name in self.__struct_fields__} | fixed


def check_maps(maps: Maps, wrong: Callable[[str, str, str], RmapdError]) -> None:
    """Raise the error that wrong() makes of a key, why it is wrong, and a value that is right."""
    for name in Maps.__struct_fields__:
        value = getattr(maps, name)
        if not 1 <= value <= 1 << 24:
            raise wrong(
                f"maps.{name}",
                f"{value} is not between 1 and {1 << 24}",
                str(getattr(Maps(), name)),
            )
    for name in ("ring_pages", "stack_rows", "flight_rows"):
        value = getattr(maps, name)
        if value & (value - 1):
            raise wrong(
                f"maps.{name}", f"{value} is not a power of two", str(getattr(Maps(), name))
            )
