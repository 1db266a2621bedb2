"""The loads as data: one file of loads/ each, and what this machine lacks to run its parts."""

from __future__ import annotations

import functools
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from tracer.errors import RmapdError

FOLDER = Path(__file__).parent / "loads"
DEFAULT = ("message", "vma", "rmap", "thp")
"""What `rmapd soak` brings where no load is named: all that need no folder."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a load, which runs again and again in its workers until the load ends.

    It is either `python`, a generator of stressors.py, or `commands`, run one after the other. In
    these {folder} is the tmpfs of the load and {mib} the memory of a worker; in a load that needs
    `selftests` a command is a program of that folder. needs: of NEEDS. root: it runs as root, and
    not as a user without a name and without privileges. limit_seconds: of one command.
    """

    name: str
    what: str
    python: str = ""
    commands: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    root: bool = False
    workers: int = 1
    limit_seconds: float | None = None

    def __post_init__(self) -> None:
        if bool(self.python) == bool(self.commands):
            raise ValueError(f"{self.name}: either python or commands")
        if unknown := {*self.needs} - {*NEEDS}:
            raise ValueError(f"{self.name}: unknown needs {', '.join(sorted(unknown))}")


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A load. tmpfs: the share of its memory that is for files of a tmpfs.

    settings: files of the kernel -> what they hold while the load runs. at_least: files -> a number
    to which they are raised. restored: patterns of files that programs of the load change, and that
    hold afterwards what they held before.
    """

    title: str
    about: str
    part: tuple[Part, ...]
    tmpfs: float = 0.1
    tmpfs_options: str = ""
    settings: Mapping[str, str] = {}
    at_least: Mapping[str, int] = {}
    restored: tuple[str, ...] = ()


@functools.cache
def discover() -> dict[str, Load]:
    """Return every load by name."""
    paths = sorted(FOLDER.glob("*.toml"), key=lambda path: (path.stem == "selftests", path.stem))
    return {path.stem: msgspec.convert(tomllib.loads(path.read_text()), Load) for path in paths}


def named(names: Sequence[str]) -> dict[str, Load]:
    """Return the loads with these names, each once. Raises RmapdError."""
    known = discover()
    if wrong := [name for name in names if name not in known]:
        why = f"there is none; loads: {', '.join(known)}"
        raise RmapdError(f"no load {', '.join(wrong)}", why=why, hint="rmapd soak --list")
    if not names:
        raise RmapdError("no load is named", hint="rmapd soak --list")
    return {name: known[name] for name in dict.fromkeys(names)}


def _swap() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) > 1


def _nodes() -> bool:
    return len([*Path("/sys/devices/system/node").glob("node[0-9]*")]) > 1


def _has(path: str) -> Callable[[], bool]:
    return Path(path).exists


def _debugfs() -> bool:
    """Return whether huge pages can be split by debugfs; the run mounts it where it is not."""
    filesystems = Path("/proc/filesystems").read_text().split()
    huge = Path("/sys/kernel/mm/transparent_hugepage").exists()
    mounted = Path("/sys/kernel/debug/tracing").exists()
    split = Path("/sys/kernel/debug/split_huge_pages").exists()
    return split or ("debugfs" in filesystems and huge and not mounted)


NEEDS: Mapping[str, tuple[Callable[[], bool], str]] = {
    "stress-ng": (
        lambda: shutil.which("stress-ng") is not None,
        "needs stress-ng: apt install stress-ng (dnf, zypper and apk: the same name; pacman -S"
        " stress-ng)",
    ),
    "cc": (
        lambda: shutil.which("cc") is not None,
        "needs a C compiler as cc: apt install gcc libc6-dev (dnf install gcc; pacman -S gcc; apk"
        " add gcc musl-dev)",
    ),
    "swap": (_swap, "this machine has no swap, so nothing is swapped (mkswap FILE; swapon FILE)"),
    "nodes": (_nodes, "this machine has one memory node, so no page moves between nodes"),
    "compaction": (
        _has("/proc/sys/vm/compact_memory"),
        "this kernel has no /proc/sys/vm/compact_memory (CONFIG_COMPACTION)",
    ),
    "ksm": (_has("/sys/kernel/mm/ksm/run"), "this kernel has no KSM (CONFIG_KSM)"),
    "debugfs": (_debugfs, "this kernel has no split_huge_pages in debugfs"),
    "selftests": (
        lambda: False,  # lacking() knows the folder
        "needs the folder of the kernel's built tests: --selftests DIR (make -C"
        " tools/testing/selftests/mm)",
    ),
}
"""What a part may need: whether this machine has it, and the sentence where it does not."""


def lacking(part: Part, selftests: Path | None) -> str:
    """Return why this machine cannot run a part; empty where it can."""
    for name in part.needs:
        there, sentence = NEEDS[name]
        if name == "selftests" and selftests is not None:
            if not any(command_of(part, one, selftests) for one in part.commands):
                return f"{selftests} has none of the kernel's built tests"
        elif not there():
            return sentence
    return ""


def command_of(part: Part, command: str, selftests: Path | None) -> list[str]:
    """Return the words of a command; none where the folder of the tests lacks its program."""
    words = command.split()
    if "selftests" not in part.needs or selftests is None:
        return words
    program = selftests / words[0]
    return [str(program), *words[1:]] if program.is_file() else []


def listed(selftests: Path | None) -> str:
    """Return the loads with their parts, and what this machine lacks, as text."""
    lines = []
    for name, load in discover().items():
        lines.append(f"{name}: {load.title}")
        for part in load.part:
            why = lacking(part, selftests)
            lines.append(
                f"    {part.name}: {part.what}" + (f"\n        LEFT OUT: {why}" * bool(why))
            )
    return "\n".join(lines) + "\n"
