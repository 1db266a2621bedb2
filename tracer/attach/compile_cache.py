"""What was compiled once, kept in a folder: the same text for the same kernel by the same compiler need not be compiled at the next start.

An entry is believed only where nobody but us could have written it (folder and file are ours and nobody else may write them) and its
content is what it was (a hash stands before it). Anything else is as if it were not there: the compiler is asked, as at the first time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

log = logging.getLogger("rmapd")

_MOST_BYTES = 16 << 20
_MOST_ENTRIES = 8
_COMPILER = (
    "/usr/lib/x86_64-linux-gnu/libbcc.so.0",
    "/usr/lib/python3/dist-packages/bcc/__init__.py",
)


class MapShape(msgspec.Struct, frozen=True):
    """What a map was created with. key_type, value_type: ids in the entry's `types`, where the map has any."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_type: int = 0
    value_type: int = 0


class CacheEntry(msgspec.Struct, frozen=True):
    """A compiled module: maps by name, instructions by program, in which a map is its number in `maps`; types: BTF of the maps, if any."""

    maps: dict[str, MapShape]
    code: dict[str, bytes]
    types: bytes = b""


def compiler_identity(files: Iterable[str] = _COMPILER) -> list[tuple[str, int, int]]:
    """Size and time of what compiles; empty where it is not at its usual place: then nothing is kept."""
    try:
        return [
            (name, found.st_size, found.st_mtime_ns) for name in files for found in [os.stat(name)]
        ]
    except OSError:
        return []


class Cache:
    """Entries by what they were made of."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def name(self, made_of: Mapping[str, Any]) -> str:
        text = msgspec.msgpack.encode(made_of, order="deterministic")
        return hashlib.sha256(text).hexdigest()

    def read(self, name: str) -> CacheEntry | None:
        """None where there is none, or none to be believed."""
        try:
            if not _is_ours(os.lstat(self._folder), stat.S_ISDIR):
                return None
            with open(
                os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb"
            ) as file:
                found = os.fstat(file.fileno())
                if not _is_ours(found, stat.S_ISREG) or found.st_size > _MOST_BYTES:
                    return None
                digest, content = file.read(32), file.read(_MOST_BYTES)
        except OSError:
            return None
        if hashlib.sha256(name.encode() + content).digest() != digest:
            log.warning("%s is damaged: the probes are compiled anew", self._folder / name)
            return None
        try:
            return msgspec.msgpack.decode(content, type=CacheEntry)
        except msgspec.DecodeError:
            return None

    def write(self, name: str, entry: CacheEntry) -> None:
        """Whole or not at all; where it cannot be written, the next start compiles again."""
        content = msgspec.msgpack.encode(entry)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours(os.lstat(self._folder), stat.S_ISDIR):
                log.warning("nothing is kept in %s: others may write it", self._folder)
                return
            with tempfile.NamedTemporaryFile(
                dir=self._folder, prefix=".new-", delete=False
            ) as file:
                file.write(hashlib.sha256(name.encode() + content).digest() + content)
            os.replace(file.name, self._folder / name)
            self._tidy()
        except OSError as error:
            log.info("compiled probes are not kept: %s", error)

    def _tidy(self) -> None:
        """The latest entries stay: of this kernel and the one before, of each fidelity."""
        entries = sorted((path.stat().st_mtime_ns, path) for path in self._folder.iterdir())
        for _, path in entries[:-_MOST_ENTRIES]:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_ours(found: os.stat_result, kind: Any) -> bool:
    return kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
