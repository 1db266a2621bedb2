"""A folder of compiled programs: the same text, for the same kernel, by the same compiler.

What is read from it is loaded into the kernel, so an entry is trusted only if no other user can
have written it (folder and file are ours, nobody else may write them) and if a hash before its
content agrees. Any other entry counts as absent: the programs are compiled as at the first start.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

log = logging.getLogger("rmapd")

_MOST_BYTES = 16 << 20
_MOST_ENTRIES = 8  # of this kernel and the one before, of each fidelity
SUFFIX = ".objects"
"""How names of entries end that `rmapd compile` made. They stay until they are removed by hand."""
_NEW = ".new-"
_ENTRY = re.compile(rf"[0-9a-f]{{64}}|{re.escape(_NEW)}.*")
"""Names that may be removed: the folder may hold files of others."""
_COMPILER = (
    f"/usr/lib/{os.uname().machine}-linux-gnu/libbcc.so.0",
    "/usr/lib/python3/dist-packages/bcc/__init__.py",
)


class MapShape(msgspec.Struct, frozen=True):
    """What a map is created with.

    key_type, value_type: type ids in the entry's BTF; 0 where the map has no types.
    """

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_type: int = 0
    value_type: int = 0


class MadeFor(msgspec.Struct, frozen=True):
    """What `rmapd compile` made an entry of, for the message where the entry does not fit.

    rmapd: its version. sources: hash of the probe objects. kernel: a name of the kernel, or of the
    file with its types. types: hash of these. sizes: macro -> rows of a map. plain_loads: whether
    the programs have them. compiler: that of BCC and clang.
    """

    rmapd: str
    sources: str
    kernel: str
    types: str
    sizes: dict[str, int]
    plain_loads: bool
    compiler: str


class CacheEntry(msgspec.Struct, frozen=True):
    """A compiled translation unit.

    maps: by name. code: program -> its instructions, which name a map by its position in `maps`.
    types: BTF of the maps, if any. made_for: of the objects of `rmapd compile`.
    """

    maps: dict[str, MapShape]
    code: dict[str, bytes]
    types: bytes = b""
    made_for: MadeFor | None = None


def compiler_identity(files: Iterable[str] = _COMPILER) -> list[tuple[str, int, int]]:
    """Return path, size and modification time (ns) of the compiler's files.

    Empty where one is not at its usual place: nothing is cached then.
    """
    try:
        return [
            (name, found.st_size, found.st_mtime_ns) for name in files for found in [os.stat(name)]
        ]
    except OSError:
        return []


class CompileCache:
    """Entries in a folder, each under the hash of what it was made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def name(self, made_of: Mapping[str, Any]) -> str:
        """Return the name of the entry that is made of this, in any order of its keys."""
        text = msgspec.msgpack.encode(made_of, order="deterministic")
        return hashlib.sha256(text).hexdigest()

    def read(self, name: str) -> CacheEntry | None:
        """Return an entry; None where there is none that can be trusted."""
        try:
            if not _is_ours(os.lstat(self.folder), stat.S_ISDIR):
                return None
            with open(
                os.open(self.folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb"
            ) as file:
                found = os.fstat(file.fileno())
                if not _is_ours(found, stat.S_ISREG) or found.st_size > _MOST_BYTES:
                    return None
                digest, content = file.read(32), file.read(_MOST_BYTES)
        except OSError:
            return None
        if hashlib.sha256(name.encode() + content).digest() != digest:
            log.warning("%s is damaged: the probes are compiled anew", self.folder / name)
            return None
        try:
            return msgspec.msgpack.decode(content, type=CacheEntry)
        except msgspec.DecodeError:
            return None

    def write(self, name: str, entry: CacheEntry) -> None:
        """Write an entry, whole or not at all. Failing is logged: the next start compiles again."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours(os.lstat(self.folder), stat.S_ISDIR):
                log.warning("compiled probes are not cached: others may write to %s", self.folder)
                return
            self._put(name, entry, 0o600)
            self._remove_oldest()
        except OSError as error:
            log.info("compiled probes are not cached: %s", error)

    def write_for_elsewhere(self, name: str, entry: CacheEntry) -> None:
        """Write an entry for another host, readable by all there. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._put(name, entry, 0o644)

    def _put(self, name: str, entry: CacheEntry, mode: int) -> None:
        content = msgspec.msgpack.encode(entry)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=_NEW, delete=False) as file:
            try:
                os.fchmod(file.fileno(), mode)
                file.write(hashlib.sha256(name.encode() + content).digest() + content)
                file.flush()
                os.replace(file.name, self.folder / name)
            except OSError:
                os.unlink(file.name)
                raise

    def made_elsewhere(self) -> list[str]:
        """Return the names of entries that `rmapd compile` made, fit or unfit, in order."""
        try:
            return sorted(path.name for path in self.folder.iterdir() if path.suffix == SUFFIX)
        except OSError:
            return []

    def _remove_oldest(self) -> None:
        ours = (path for path in self.folder.iterdir() if _ENTRY.fullmatch(path.name))
        entries = sorted((path.stat().st_mtime_ns, path) for path in ours)
        for _, path in entries[:-_MOST_ENTRIES]:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_ours(found: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    """Return whether a file is of this kind, ours or root's, and not writable by others."""
    return (
        is_kind(found.st_mode) and found.st_uid in (os.geteuid(), 0) and not found.st_mode & 0o022
    )
