"""What a load may use, what enforces it, and how it is all taken back.

A cgroup v2 of its own bounds memory, swap and processes where one can be made. Elsewhere each
worker has rlimits, and in both cases the run looks at the machine's free memory (runner.py). Files
of a load are in a tmpfs of bounded size, never on a disk.

clean() takes back the cgroup and the kernel's settings. The runner calls it at its end, and the
soak once more after it: the runner may have been killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from tracer.errors import RmapdError, Temporary, of_os
from tracer.soak.loads import Load

MIB = 1 << 20
SHARE = 0.25
"""Of the memory that is free now: a load's limit where --memory names none."""
MOST_BYTES = 4096 * MIB
LEAST_BYTES = 128 * MIB
FLOOR_SHARE = 0.05
"""Of all memory: a load ends where less is free."""
_CONTROLLERS = ("memory", "pids")
_REMOVE_SECONDS = 30.0
_CHOSEN = re.compile(r"\[(\S+)\]")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgKMG%]?)(?:i?[bB])?")


class Limits(msgspec.Struct, frozen=True):
    """The limits of one soak. cgroup: its folder; empty: there is none, and `why`."""

    memory_bytes: int
    processes: int
    floor_bytes: int
    cgroup: str = ""
    why: str = ""

    @property
    def how(self) -> str:
        """What enforces them, in words."""
        if self.cgroup:
            return "a cgroup v2 of its own"
        return "rlimits and a check of free memory"


def meminfo(text: str | None = None) -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    lines = (text or Path("/proc/meminfo").read_text()).splitlines()
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in map(str.split, lines)}


def memory_limit(asked: str | None, memory: Mapping[str, int]) -> int:
    """Return the limit in bytes. asked: such as 2G, 500M or 50% (of what is free); None: a share.

    Raises RmapdError where it is no size, or leaves the machine too little.
    """
    free = memory["MemAvailable"]
    if asked is None:
        return max(LEAST_BYTES, min(_rounded(int(free * SHARE)), MOST_BYTES))
    found = _SIZE.fullmatch(asked)
    if not found:
        raise RmapdError(f"{asked} is no size", hint="--memory 2G, --memory 500M or --memory 50%")
    number, unit = float(found[1]), found[2].lower()
    factor = free / 100 if unit == "%" else 1 << {"": 0, "k": 10, "m": 20, "g": 30}[unit]
    limit = int(number * factor)
    if limit < LEAST_BYTES:
        raise RmapdError(
            f"--memory {asked} is too little", why=f"a load needs {LEAST_BYTES // MIB} MiB"
        )
    if limit > free - floor(memory):
        why = f"{free // MIB:,} MiB are free, and {floor(memory) // MIB:,} MiB of them stay free"
        raise RmapdError(f"--memory {asked} is too much", why=why, hint="less, or 50%")
    return limit


def _rounded(limit: int) -> int:
    """Round down to two bits (3 GiB, 4 GiB, 6 GiB): the next soak here then has the same limit."""
    return limit >> max(0, limit.bit_length() - 2) << max(0, limit.bit_length() - 2)


def floor(memory: Mapping[str, int]) -> int:
    """Return how many bytes stay free at least."""
    return int(memory["MemTotal"] * FLOOR_SHARE)


def planned(asked: str | None, processes: int | None, name: str) -> Limits:
    """Decide the limits, and make the cgroup where that is possible. Raises RmapdError."""
    memory = meminfo()
    root = _cgroup_root()
    if root and (room := room_of(Path("/proc/self/cgroup").read_text(), root)) is not None:
        memory["MemAvailable"] = min(memory["MemAvailable"], room)
    limit = memory_limit(asked, memory)
    if limit > memory["MemAvailable"] - floor(memory):
        free = f"{memory['MemAvailable'] // MIB:,} MiB are free"
        raise Temporary("too little memory is free for a load", why=free)
    most = processes if processes is not None else min(512, 128 + 32 * (os.cpu_count() or 1))
    limits = Limits(limit, most, floor(memory))
    try:
        return msgspec.structs.replace(limits, cgroup=str(_made(name, limits)))
    except _NoCgroup as error:
        return msgspec.structs.replace(limits, why=str(error))


def _cgroup_root() -> Path | None:
    """Return where the cgroup v2 is mounted."""
    mounts = map(str.split, Path("/proc/self/mounts").read_text().splitlines())
    return next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)


def room_of(cgroups: str, root: Path) -> int | None:
    """Return how much memory the own cgroup and those around it leave; None: as much as there is.

    The load's cgroup is below the root, so their limits do not bound it. cgroups: the text of
    /proc/self/cgroup.
    """
    own = next((line[3:] for line in cgroups.splitlines() if line.startswith("0::")), None)
    if own is None:
        return None
    folder, rooms = root / own.lstrip("/"), list[int]()
    for group in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # ValueError: of `max`
            most = int((group / "memory.max").read_text())
            rooms.append(max(0, most - int((group / "memory.current").read_text())))
        if group == root:
            break
    return min(rooms, default=None)


class _NoCgroup(Exception):
    """No cgroup of its own, and why."""


def _made(name: str, limits: Limits) -> Path:
    """Make the cgroup below the root of the cgroup v2 that is mounted. Raises _NoCgroup."""
    root = _cgroup_root()
    if root is None:
        raise _NoCgroup("no cgroup v2 is mounted")
    group = root / name
    try:
        there = (root / "cgroup.controllers").read_text().split()
        if missing := [one for one in _CONTROLLERS if one not in there]:
            raise _NoCgroup(f"the cgroup v2 at {root} has no controller {' and '.join(missing)}")
        (root / "cgroup.subtree_control").write_text("+memory +pids")
        group.mkdir()
        (group / "memory.max").write_text(str(limits.memory_bytes))
        (group / "memory.high").write_text(str(limits.memory_bytes // 16 * 15))
        (group / "pids.max").write_text(str(limits.processes))
        with contextlib.suppress(OSError):  # a kernel without swap accounting
            (group / "memory.swap.max").write_text(str(limits.memory_bytes))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        raise _NoCgroup(f"{group}: {error.strerror}") from error
    return group


def join(cgroup: str) -> None:
    """Move this process into the cgroup."""
    (Path(cgroup) / "cgroup.procs").write_text("0")


def limit_worker(memory: int, processes: int, *, shared: bool, root: bool) -> None:
    """Set the rlimits of this process. shared: a cgroup bounds memory and processes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if shared:
        return
    resource.setrlimit(resource.RLIMIT_DATA, (memory * 2 + 256 * MIB,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory,) * 2)
    if not root:  # the kernel does not hold root to it
        resource.setrlimit(resource.RLIMIT_NPROC, (processes,) * 2)


def settings_of(loads: Iterable[Load], limits: Limits) -> tuple[dict[str, str], dict[str, str]]:
    """Return what files of the kernel are to hold for the loads, and what they hold now."""
    settings, raised, patterns = dict[str, str](), dict[str, int](), list[str]()
    for load in loads:
        settings |= load.settings
        raised |= load.at_least
        patterns += load.restored
    matching = [path for pattern in patterns for path in sorted(Path("/").glob(pattern[1:]))]
    files = [str(path) for path in matching if path.is_file() and path.stat().st_mode & 0o200]
    before = read_settings([*settings, *raised, *files])
    for name, least in raised.items():
        if name in before and _fits(name, least, limits):
            settings[name] = str(max(least, int(before[name])))
    return settings, before


def _fits(name: str, number: int, limits: Limits) -> bool:
    """Whether so many of a file may be had: the cgroup does not count the pool of huge pages."""
    each = meminfo().get("Hugepagesize", 0) if name.endswith("nr_hugepages") else 0
    return number * each <= limits.memory_bytes // 8


def read_settings(names: Iterable[str]) -> dict[str, str]:
    """Return what these files of the kernel hold now, without those that are not there.

    Of a file with alternatives, such as `always [madvise] never`, the chosen one.
    """
    found = {}
    for name in names:
        with contextlib.suppress(OSError):
            text = Path(name).read_text().strip()
            chosen = _CHOSEN.search(text)
            found[name] = chosen[1] if chosen else text
    return found


def write_settings(values: Mapping[str, str]) -> None:
    """Write the files of the kernel that are there and hold something else."""
    now = read_settings(values)
    for name, value in values.items():
        if now.get(name, value) != value:
            with contextlib.suppress(OSError):
                Path(name).write_text(value)


def clean(cgroup: str, settings: Mapping[str, str], *, remove: bool = True) -> None:
    """Kill what is in the cgroup, remove it, and write settings back; may be called again.

    Raises RmapdError where the cgroup does not go away. remove: else it stays, empty.
    """
    write_settings(settings)
    if not cgroup or not Path(cgroup).exists():
        return
    until = time.monotonic() + _REMOVE_SECONDS
    with contextlib.suppress(OSError):
        (Path(cgroup) / "cgroup.kill").write_text("1")
    while remove:
        try:
            Path(cgroup).rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() >= until:
                raise of_os(error, f"cannot remove the cgroup {cgroup}") from error
            time.sleep(0.05)
        else:
            return
